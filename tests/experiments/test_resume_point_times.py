"""A resume point's parts are timed, and its size is three numbers for each weight, as the guide says."""

from experiments.speed import resume_points


def test_a_point_is_written_and_each_of_its_parts_is_timed(monkeypatch):
    monkeypatch.setattr(resume_points, "TURNS", 2)
    found = resume_points.point(1024)
    assert 24 <= found["bytes"] / (1024 * resume_points.D) < 24.2
    seconds = found["seconds"]
    parts = [seconds[name] for name in resume_points.PARTS.values()]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= seconds["all"]
