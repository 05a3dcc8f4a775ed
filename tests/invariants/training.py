"""One preference step of the tiny model on given pairs, under any split into micro-batches and any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import PREFIX_IDS, TINY, pair_batch, random_features, random_pairs

from isrdpo_jax.models.video_llava import Params, abstract_params, logical_axes
from isrdpo_jax.programs.dpo_step import PairBatch, dpo_step, pair_logprobs
from isrdpo_jax.programs.update import TrainState, adamw, create_state
from isrdpo_jax.schema import DpoConfig, MeshConfig, ModelConfig
from isrdpo_jax.sharding import batch_sharding, make_mesh, parameter_shardings, replicated

DPO = DpoConfig(beta=0.1, batch_size=8)
LEARNING_RATE = np.float32(3e-3)
OPTIMIZER = adamw(1.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0)
PAIRS = random_pairs(8)
FEATURES = random_features(8)
ONE_DEVICE = MeshConfig(data=1, fsdp=1, tensor=1)


def stored_reference(seed: int = 1) -> np.ndarray:
    """Log-probs of some other policy: float32[8, 2]."""
    return np.random.default_rng(seed).normal(-20, 2, (8, 2)).astype(np.float32)


class Layout:
    """Parameters, state and batches placed on a mesh."""

    def __init__(self, params: Params, sizes: MeshConfig, micro_batches: int, config: ModelConfig = TINY):
        devices = jax.devices()[: abs(sizes.data * sizes.fsdp * sizes.tensor)]
        self.mesh = make_mesh(sizes, devices)
        self.micro_batches, self.config = micro_batches, config
        self.params = jax.device_put(params, parameter_shardings(self.mesh, logical_axes(TINY), abstract_params(TINY)))
        self.prefix_ids = jax.device_put(PREFIX_IDS, replicated(self.mesh))
        self.frozen = {name: value for name, value in self.params.items() if name != "llama"}

    def state(self) -> TrainState:
        """Fresh moments, and a copy of the decoder: the step donates its state."""
        return create_state(jax.tree.map(jnp.copy, self.params["llama"]), OPTIMIZER)

    def batches(self, pairs=PAIRS, features=FEATURES, reference=None, weights=None) -> PairBatch:
        """Leading axes [micro_batches, 8 / micro_batches]."""
        whole = pair_batch(pairs, features, reference, weights)
        split = jax.tree.map(lambda x: x.reshape(self.micro_batches, -1, *x.shape[1:]), whole)
        return jax.device_put(split, batch_sharding(self.mesh, axis=1))

    def score(self, batches: PairBatch) -> np.ndarray:
        """The reference pass: float32[8, 2]."""
        micro = (jax.tree.map(lambda x, k=k: x[k], batches) for k in range(self.micro_batches))
        return np.concatenate(
            [pair_logprobs(self.params, self.prefix_ids, one, config=self.config, dpo=DPO) for one in micro]
        )

    def step(self, state: TrainState, batches: PairBatch) -> tuple[TrainState, dict[str, float]]:
        state, metrics = dpo_step(
            state,
            self.frozen,
            self.prefix_ids,
            batches,
            LEARNING_RATE,
            config=self.config,
            dpo=DPO,
            optimizer=OPTIMIZER,
        )
        return state, {name: float(value) for name, value in metrics.items()}


def first_moment(state: TrainState) -> Params:
    """(1 - b1) times the clipped gradient, behind the first update."""
    return optax.tree_utils.tree_get(state.opt_state, "mu")
