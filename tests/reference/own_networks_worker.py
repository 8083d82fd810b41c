"""Every method with networks of its own on each process: some steps, and the same by way of a checkpoint."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.append(str(Path(__file__).parents[1]))

from reference.contract_cases import METHOD_CLASSES, build, run

from ssdd_hub.runs.checkpoints import Checkpoints, save_tree

METHODS = [name for name, method in METHOD_CLASSES.items() if method.has_own_networks]
STOP, STEPS = 3, 6


def main(folder):
    torch.set_num_threads(1)
    accelerator, results = Accelerator(cpu=True), {}
    for method in METHODS:
        unbroken, resumed = (build(method, "pixels", accelerator, place={"own_networks": True}) for _ in range(2))
        for _ in unbroken.warm_up():
            pass
        learned, gradients = list(unbroken.parameterisation.parameters()), []

        def note(*_, found=gradients, of=learned):
            # Targets that stay in a step have no gradient in it.
            found.extend(torch.zeros_like(part) if part.grad is None else part.grad.clone() for part in of)

        unbroken.optimizer.register_step_pre_hook(note)
        losses = run(unbroken, STOP)
        state = unbroken.state_dict()
        own = {name: state.pop(name) for name in unbroken.own_state}
        checkpoints = Checkpoints(folder / method)
        checkpoints.save(STOP, state, own)
        losses = torch.cat([losses, run(unbroken, STEPS - STOP)])
        saved = checkpoints.load_newest(shared=False)
        resumed.load_state_dict({**saved, **saved["own"]})
        run(resumed, STEPS - STOP)
        results[method] = {"losses": losses, "gradients": gradients[: len(learned)]}
        results[method] |= {"images": unbroken.images, "resumed": resumed.images}
    save_tree(folder / f"process-{accelerator.process_index}.safetensors", results)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
