"""What accelerators can do and cost, from public figures: the only place that knows any of them by name."""

from typing import NamedTuple

# Precisions of fp32 matrix products, jax.lax.Precision's: as losses compute their logits, and in full, which no tensor
# core does in one go.
HIGH, HIGHEST = "high", "highest"


class Links(NamedTuple):
    """How a device reaches the others of its domain, a server or a pod.  Bytes/s are those of one direction."""

    devices: int  # of a domain
    together: float  # bytes/s over all links of a device
    single: float  # bytes/s to one neighbour
    latency: float  # seconds from one operation that passes something on to the next


class Network(NamedTuple):
    """How a domain reaches the other domains."""

    ports: int
    port: float  # bytes/s of one of them
    latency: float  # seconds, as above


class Device(NamedTuple):
    """Units: FLOP/s, bytes, bytes/s, US dollars."""

    kind: str  # jax.Device.device_kind
    peak: dict[str, float]  # {precision of a matrix product: dense peak}
    memory: float
    usable: float  # share of it that JAX takes for arrays
    memory_bandwidth: float
    links: Links
    network: Network
    price: float  # per hour, on demand
    price_date: str


# NVIDIA: peaks (half of those "with sparsity"), memory and NVLink from the data sheets of H200, H100 SXM and A100 80GB
# SXM and from the Ada white paper.  float32 products run as TF32 unless full precision is asked for, high or not.  DGX
# and HGX have eight GPUs with a 400 Gb/s InfiniBand port each (A100: 200 Gb/s); nccl-tests report 400-450 GB/s of
# all-reduce bus bandwidth across them, 250-300 on A100 (saturncloud.io/blog/crusoe-nccl-cluster-validation).  RTX 4090:
# two on PCIe 4.0 x16 without peer access, 25 Gb/s Ethernet.  JAX takes 75 % of a GPU (docs.jax.dev, "GPU memory
# allocation").
# Prices: the middle of what specialised clouds ask (mercatus-ai.com/blog/cloud-gpu-pricing); RTX 4090: RunPod's
# (deploybase.ai/articles/runpod-gpu-pricing).
# TPU: cloud.google.com/tpu/docs/v5e and v5p.  Links are half of the bidirectional figure, over 4 and 6 neighbours; the
# network is that of the hosts (v5e: 2 x 100 Gb/s for 8 chips; v5p: 50 Gb/s a chip, 4 to a host).  float32 products run
# as one bfloat16 pass, in high precision as three, in full precision as six.  Prices: Google's list for the United
# States, which no page that was at hand confirmed.
# cpu: one core with two 256-bit FMA units at 2.6 GHz and 4 GB, as clouds rent them.
# Latencies are assumptions, not measurements: a hop of a TPU's links, a GPU's pair of kernels that send and receive, a
# message across a network.
DEVICES = {
    "h200": Device(
        kind="NVIDIA H200",
        peak={"bfloat16": 989e12, "float32": 495e12, HIGH: 495e12, HIGHEST: 67e12},
        memory=141e9, usable=0.75, memory_bandwidth=4.8e12,
        links=Links(8, together=450e9, single=450e9, latency=10e-6),
        network=Network(8, port=50e9, latency=20e-6),
        price=4.00, price_date="2026-05",
    ),
    "h100": Device(
        kind="NVIDIA H100 80GB HBM3",
        peak={"bfloat16": 989e12, "float32": 495e12, HIGH: 495e12, HIGHEST: 67e12},
        memory=80e9, usable=0.75, memory_bandwidth=3.35e12,
        links=Links(8, together=450e9, single=450e9, latency=10e-6),
        network=Network(8, port=50e9, latency=20e-6),
        price=3.00, price_date="2026-05",
    ),
    "a100": Device(
        kind="NVIDIA A100-SXM4-80GB",
        peak={"bfloat16": 312e12, "float32": 156e12, HIGH: 156e12, HIGHEST: 19.5e12},
        memory=80e9, usable=0.75, memory_bandwidth=2.04e12,
        links=Links(8, together=300e9, single=300e9, latency=10e-6),
        network=Network(8, port=25e9, latency=20e-6),
        price=1.30, price_date="2026-05",
    ),
    "rtx4090": Device(
        kind="NVIDIA GeForce RTX 4090",
        peak={"bfloat16": 165e12, "float32": 82.6e12, HIGH: 82.6e12, HIGHEST: 82.6e12},
        memory=24e9, usable=0.75, memory_bandwidth=1.008e12,
        links=Links(2, together=32e9, single=32e9, latency=20e-6),
        network=Network(1, port=3.1e9, latency=40e-6),
        price=0.60, price_date="2026-03",
    ),
    "tpu-v5e": Device(
        kind="TPU v5 lite",
        peak={"bfloat16": 197e12, "float32": 197e12, HIGH: 65.7e12, HIGHEST: 32.8e12},
        memory=16e9, usable=0.97, memory_bandwidth=0.819e12,
        links=Links(256, together=200e9, single=50e9, latency=1e-6),
        network=Network(32, port=25e9, latency=20e-6),
        price=1.20, price_date="2026, unconfirmed",
    ),
    "tpu-v5p": Device(
        kind="TPU v5p",
        peak={"bfloat16": 459e12, "float32": 459e12, HIGH: 153e12, HIGHEST: 76.5e12},
        memory=95e9, usable=0.97, memory_bandwidth=2.765e12,
        links=Links(6144, together=600e9, single=100e9, latency=1e-6),
        network=Network(1536, port=25e9, latency=20e-6),
        price=4.20, price_date="2026, unconfirmed",
    ),
    "cpu": Device(
        kind="cpu",
        peak={"bfloat16": 83e9, "float32": 83e9, HIGH: 83e9, HIGHEST: 83e9},
        memory=4e9, usable=1.0, memory_bandwidth=10e9,
        links=Links(8, together=10e9, single=10e9, latency=10e-6),
        network=Network(1, port=1.2e9, latency=50e-6),
        price=0.04, price_date="2026, unconfirmed",
    ),
}  # fmt: skip
