"""PyTorch's own forward hooks on the Hugging Face model: full forwards, without any library."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from peers.steps import BATCH, KINDS, difference, interchange, interchange_each, step
from torch import Tensor
from transformers import AutoModelForCausalLM


class Peer:
    """Sources are run once; every patch is a forward pass over whole prompts."""

    def __init__(self, folder: str, problem: dict[str, Tensor]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.model.eval().requires_grad_(False)
        self.layers = range(self.model.config.num_hidden_layers)
        self.problem, self.layer = problem, int(problem["layer"])

    def works(self) -> dict[str, Callable[[], Tensor]]:
        works = {
            "evaluate 1000": self.evaluate_many,
            "sweep": self.sweep,
            "positions": self.positions,
            "facts": self.facts(),
            "closed form": self.closed_form(),
        }
        for site in ("mlp", "resid"):
            works[f"evaluate {site}"] = self.evaluation(site)
            works[f"step {site}"] = self.training(site)
        return works

    @contextmanager
    def hooked(self, kind: str, layer: int, act: Callable[[Tensor], Tensor | None]) -> Iterator:
        """`act` sees a component's output, or the hidden activation (`mlp`), and may replace it."""
        block = self.model.model.layers[layer]

        def before(module: object, inputs: tuple) -> tuple | None:
            new = act(inputs[0])
            return None if new is None else (new,)

        def after(module: object, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
            if not isinstance(output, tuple):
                return act(output)
            new = act(output[0])
            return None if new is None else (new, *output[1:])

        if kind == "mlp":
            handle = block.mlp.down_proj.register_forward_pre_hook(before)
        else:
            module = {"resid": block, "attn_out": block.self_attn, "mlp_out": block.mlp}[kind]
            handle = module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def activations(
        self, tokens: Tensor, sites: Sequence[tuple[str, int]]
    ) -> dict[tuple[str, int], Tensor]:
        """The sites' activations at all positions of these prompts, from one run."""
        found: dict[tuple[str, int], Tensor] = {}

        def keep(site: tuple[str, int]) -> Callable[[Tensor], None]:
            return lambda x: found.update({site: x})

        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(self.hooked(*site, keep(site)))
            self.model(tokens, logits_to_keep=1)
        return found

    def patched(
        self,
        site: tuple[str, int],
        tokens: Tensor,
        new: Callable[[Tensor], Tensor],
        position: int = -1,
    ) -> Tensor:
        """Logits at the last token with the site's activation replaced at one position."""

        def write(x: Tensor) -> Tensor:
            changed = x.clone()
            changed[:, position] = new(x[:, position])
            return changed

        with self.hooked(*site, write):
            return self.model(tokens, logits_to_keep=1).logits[:, -1]

    def prepared(self, site: str) -> Callable[[Tensor], Tensor]:
        """Logits under a direction's interchange; the sources are run at the first call."""
        p, place, cached = self.problem, (site, self.layer), {}

        def logits(direction: Tensor) -> Tensor:
            if not cached:
                cached.update(self.activations(p["source"], [place]))
            return self.patched(place, p["base"], interchange(cached[place][:, -1], direction))

        return logits

    def evaluation(self, site: str) -> Callable[[], Tensor]:
        logits, direction = self.prepared(site), self.problem[f"direction {site}"]
        return torch.no_grad()(lambda: logits(direction))

    def training(self, site: str) -> Callable[[], Tensor]:
        logits, labels = self.prepared(site), self.problem["counterfactual"]
        start = self.problem[f"direction {site}"]
        return step(lambda vector: F.cross_entropy(logits(vector), labels), start)

    def closed_form(self) -> Callable[[], Tensor]:
        """The ends of the MLP's spectrum from the whole matrix, three eigenvalues each."""
        p, place, cached = self.problem, ("mlp", self.layer), []

        def run() -> Tensor:
            if not cached:
                tokens = (p["base"], p["source"])
                cached.extend(self.activations(each, [place])[place][:, -1] for each in tokens)
            base, change = cached[0].clone().requires_grad_(), cached[1] - cached[0]
            logits = self.patched(place, p["base"], lambda _: base)
            clean = difference(logits, p["answer"], p["counterfactual"])
            gradient = torch.autograd.grad(clean.sum(), base)[0]
            half = gradient.T @ change / (-2 * len(base) * clean.detach().mean())
            values = torch.linalg.eigvalsh((half + half.T).double()).float().flip(0)
            return torch.cat([values[:3], values[-3:]])

        return run

    @torch.no_grad()
    def evaluate_many(self) -> Tensor:
        """Logit differences of many pairs under a direction's interchange, sources included."""
        p, place, found = self.problem, ("mlp", self.layer), []
        for base, source in zip(
            p["many base"].split(BATCH), p["many source"].split(BATCH), strict=True
        ):
            acts = self.activations(source, [place])[place][:, -1]
            found.append(self.patched(place, base, interchange(acts, p["direction mlp"])))
        return difference(torch.cat(found), p["many answer"], p["many counterfactual"])

    @torch.no_grad()
    def sweep(self) -> Tensor:
        """Mean logit differences at the last token, `[layer kind]`, sources included."""
        p, n = self.problem, int(self.problem["sweep pairs"])
        base, labels = p["base"][:n], (p["answer"][:n], p["counterfactual"][:n])
        sites = [(kind, layer) for layer in self.layers for kind in KINDS]
        acts = self.activations(p["source"][:n], sites)
        table = []
        for site in sites:
            logits = self.patched(site, base, lambda _, new=acts[site][:, -1]: new)
            table.append(difference(logits, *labels).mean())
        return torch.stack(table).view(-1, len(KINDS))

    @torch.no_grad()
    def positions(self) -> Tensor:
        """Mean logit differences, residual stream, `[layer position]`, sources included."""
        p, n = self.problem, int(self.problem["position pairs"])
        base, labels = p["base"][:n], (p["answer"][:n], p["counterfactual"][:n])
        sites = [("resid", layer) for layer in self.layers]
        acts = self.activations(p["source"][:n], sites)
        table = []
        for site in sites:
            for at in range(base.shape[1]):
                logits = self.patched(site, base, lambda _, new=acts[site][:, at]: new, at)
                table.append(difference(logits, *labels).mean())
        return torch.stack(table).view(-1, base.shape[1])

    def facts(self) -> Callable[[], Tensor]:
        """The gradient for one direction per pair, `[pairs d_mlp]`, all pairs in one batch.

        Prompts are padded at the end, which the tokens before do not see.
        """
        p, place = self.problem, ("mlp", int(self.problem["facts layer"]))
        rows, at = torch.arange(len(p["facts base"])), p["facts position"]
        last, cached = p["facts base length"] - 1, []

        def run() -> Tensor:
            if not cached:
                acts = self.activations(p["facts source"], [place])[place]
                cached.append(acts[rows, p["facts source position"]])
            vectors = p["facts directions"].clone().requires_grad_()

            def write(x: Tensor) -> Tensor:
                changed = x.clone()
                changed[rows, at] = interchange_each(x[rows, at], cached[0], vectors)
                return changed

            with self.hooked(*place, write):
                logits = self.model(p["facts base"]).logits[rows, last]
            difference(logits, p["facts answer"], p["facts counterfactual"]).sum().backward()
            return vectors.grad

        return run
