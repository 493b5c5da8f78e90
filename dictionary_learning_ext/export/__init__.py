"""SAEs in other libraries' formats, and on the hub."""
