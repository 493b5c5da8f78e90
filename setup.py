from pathlib import Path

from setuptools import find_packages, setup

DEV = [
    "build>=1.2",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "matplotlib>=3.8",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pyright>=1.1.380",
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-xdist>=3.7",
    "ruff>=0.8",
    "selenium>=4.20",
    "setuptools>=77",
]

DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings-python>=1.16,<3",
]

# SAE Bench holds numpy below 2 and datasets below 4. Its sparse probing breaks on newer beartypes,
# and a pyarrow that wants numpy 2 fails at import where there is none.
SAEBENCH = [
    "sae-bench>=0.6,<0.7",
    "beartype>=0.14.1,<0.18",
    "pyarrow<26",
    "threadpoolctl>=3",
    "scikit-learn<1.10",  # sae-probes asks for penalty="l1", which goes in 1.10
]

setup(
    name="dictionary-learning-ext",
    version="0.3.0",
    description="Variational TopK sparse autoencoders for language models, on top of dictionary_learning",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The dictionary_learning_ext authors",
    license="MIT",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords="sparse autoencoders, variational autoencoders, interpretability, language models",
    python_requires=">=3.10",
    packages=find_packages(include=["dictionary_learning_ext", "dictionary_learning_ext.*"]),
    package_data={
        "dictionary_learning_ext": ["embedded/**/*", "py.typed", "__init__.pyi"],
        "dictionary_learning_ext.features": ["templates/*"],
        "dictionary_learning_ext.report": ["templates/*"],
    },
    # The lower bounds are what `make test-oldest` installs. The newest that `make test-newest` tested, on
    # Python 3.13: torch 2.15, transformers 5.24, nnsight 0.8.1, datasets 5.2, numpy 2.5, pandas 3.1, pyarrow 26,
    # scipy 1.18, wandb 0.31.
    install_requires=[
        "accelerate>=1.1",
        "dictionary-learning==0.1.0",
        "torch>=2.6",
        "transformers>=4.56,<6",
        "nnsight>=0.3.5",
        "datasets>=3.6,<6",
        "einops>=0.7",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "huggingface_hub>=0.34",
        "numba>=0.59",
        "numpy>=1.26",
        "plotly>=5.24",
        "psutil>=5.9",
        "pyarrow>=15",
        "pyyaml>=6",
        "safetensors>=0.6.2",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tqdm>=4.66",
        "wandb>=0.19.10",
        "zstandard>=0.22",  # datasets imports it for .jsonl.zst on the hub
    ],
    extras_require={
        "dev": DEV,
        "docs": DOCS,
        "sae-bench": SAEBENCH,
        "sae-lens": ["sae-lens>=6.54,<7"],
    },
    entry_points={"console_scripts": ["vsae=dictionary_learning_ext.cli:main"]},
)
