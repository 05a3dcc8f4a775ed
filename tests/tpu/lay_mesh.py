"""Lays a mesh on a TPU slice that is not there, and prints its sizes.

    python lay_mesh.py v6e:16x16 '{"fsdp": 128, "tensor": 2}'

Needs libtpu and the environment of `test_compile.py`.
"""

from __future__ import annotations

import json
import sys

from jax.experimental import topologies

from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import make_mesh


def main(topology: str, sizes: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    print(*make_mesh(MeshConfig(**json.loads(sizes)), devices).shape.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
