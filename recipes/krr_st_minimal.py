"""KRR-ST, self-supervised dataset distillation, in one file of PyTorch: `python recipes/krr_st_minimal.py`.

Algorithm 1 of Lee, Lee & Hwang, ICLR 2024 (arXiv 2310.06511), on scikit-learn's digits without their labels: 20 images
and their targets are learned such that students trained on them predict a teacher's features of all other images. It
takes ten seconds on a CPU. `recipes/distill.py` does the same, faster and on any dataset; tests compare the two.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

M, B, D = 20, 256, 16  # distilled images, real images of a batch, width of the targets
STEPS, LR = 600, 2e-2  # outer steps, and the first learning rate of images and targets
RIDGE = 1e-6  # of the regression, relative to the trace of its kernel
POOL, MAX_AGE = 4, 100  # students at work, and the inner steps after which one is replaced
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}  # optimiser of the students
EPOCHS, STUDENTS = 150, 3  # training of the students that judge the result, and their number


class Student(nn.Module):
    """A ConvNet of two blocks: features, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)),  # (n, 16, 4, 4)
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)),  # (n, 32, 2, 2)
            nn.Flatten(),  # (n, F = 128)
        )
        self.head = nn.Linear(128, D)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(n, 1, 8, 8)` to predicted targets `(n, D)`."""
        return self.head(self.features(images))


def with_one(features: Tensor) -> Tensor:
    """Appends the constant 1, which gives the regression a bias: `(n, F)` to `(n, F + 1)`."""
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)


def regression_error(fitted: Tensor, targets: Tensor, known: Tensor, real_targets: Tensor, ridge: float) -> Tensor:
    """Error on real images, of features `known`, of the kernel ridge regression on features `fitted` of the set."""
    fitted, known = with_one(fitted), with_one(known)  # (M, F + 1), (B, F + 1)
    kernel = fitted @ fitted.T  # (M, M)
    # The penalty follows the scale of the kernel, but must not reward images for a small one: hence detach.
    penalty = ridge * kernel.trace().detach() * torch.eye(len(kernel)).to(kernel)
    predicted = known @ fitted.T @ torch.linalg.solve(kernel + penalty, targets)  # (B, D)
    return F.mse_loss(predicted, real_targets)


def outer_loss(student: nn.Module, images: Tensor, targets: Tensor, real: Tensor, real_targets: Tensor) -> Tensor:
    """Error of the regression on the student's features."""
    student.eval()
    with torch.no_grad():
        known = student.features(real)
    return regression_error(student.features(images), targets, known, real_targets, RIDGE)


def inner_step(student: nn.Module, sgd: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> Tensor:
    """Trains a student by one step of regression on the whole set, as it is now; returns its loss."""
    loss = F.mse_loss(student.train()(images.detach()), targets.detach())
    sgd.zero_grad()
    loss.backward()
    sgd.step()
    return loss.detach()


class Pool:
    """Students of different ages, so that the set serves a training from its beginning to its end."""

    def __init__(self, build: Callable[[int], nn.Module], size: int = POOL, max_age: int = MAX_AGE, **sgd: float):
        self.build, self.max_age, self.sgd = build, max_age, {**SGD, **sgd}
        self.students, self.ages = [build(slot) for slot in range(size)], [0] * size  # ages in inner steps
        self.optimizers = [torch.optim.SGD(student.parameters(), **self.sgd) for student in self.students]

    def train(self, slot: int, images: Tensor, targets: Tensor) -> Tensor:
        """Ages a student by one inner step; at the age limit, one with fresh weights and age 0 takes its place."""
        loss = inner_step(self.students[slot], self.optimizers[slot], images, targets)
        self.ages[slot] += 1
        if self.ages[slot] == self.max_age:
            self.students[slot], self.ages[slot] = self.build(slot), 0
            self.optimizers[slot] = torch.optim.SGD(self.students[slot].parameters(), **self.sgd)
        return loss


def outer_step(
    step: int, adam: torch.optim.Optimizer, pool: Pool, slot: int, real: Tensor, real_targets: Tensor
) -> float:
    """Improves images and targets, the two parameters of `adam`, for one student; then trains that student on them."""
    images, targets = adam.param_groups[0]["params"]
    loss = outer_loss(pool.students[slot], images, targets, real, real_targets)
    # The student's weights get no gradient of the outer loss: it learns from the set alone.
    images.grad, targets.grad = torch.autograd.grad(loss, [images, targets])
    adam.param_groups[0]["lr"] = LR * (1 - step / STEPS)
    adam.step()
    pool.train(slot, images, targets)
    return loss.item()


def pca_teacher(images: Tensor) -> Callable[[Tensor], Tensor]:
    """A teacher that needs neither labels nor training: the first `D` principal components, whitened."""
    flat = images.flatten(1)  # (N, 64)
    _, scales, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)  # (64,), (64, 64)
    matrix = directions[:D].T / scales[:D] * len(flat) ** 0.5  # (64, D)
    return lambda seen: (seen.flatten(1) - flat.mean(0)) @ matrix  # (n, D)


def judge(images: Tensor, targets: Tensor, heldout: Tensor, heldout_targets: Tensor) -> float:
    """Mean error to the teacher, on held-out images, of students that are trained on the set and on nothing else."""
    errors = []
    for _ in range(STUDENTS):
        student = Student()
        sgd = torch.optim.SGD(student.parameters(), **SGD)
        for _ in range(EPOCHS):
            inner_step(student, sgd, images, targets)
        with torch.no_grad():
            errors.append(F.mse_loss(student.eval()(heldout), heldout_targets).item())
    return sum(errors) / STUDENTS


def main() -> None:
    """Digits and their teacher, the distillation, and what it was good for."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors are so small that threads would wait for each other
    pixels = torch.tensor(load_digits().images, dtype=torch.float32)[:, None][torch.randperm(1797)]
    source, heldout = ((pixels - pixels.mean()) / pixels.std()).split([1500, 297])  # (N, 1, 8, 8)
    teacher = pca_teacher(source)
    source_targets, heldout_targets = teacher(source), teacher(heldout)  # (N, D)
    images, targets = nn.Parameter(source[:M].clone()), nn.Parameter(source_targets[:M].clone())
    adam, pool = torch.optim.AdamW([images, targets], LR, weight_decay=0.0), Pool(lambda slot: Student())
    # Random ages at the start: without them, all students would be young at first and old together.
    for slot, age in enumerate(torch.randint(1, MAX_AGE, (POOL,)).tolist()):
        for _ in range(age):
            pool.train(slot, images, targets)
    for step in range(STEPS):
        batch, slot = torch.randperm(len(source))[:B], int(torch.randint(POOL, ()))
        loss = outer_step(step, adam, pool, slot, source[batch], source_targets[batch])
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:3d}: outer loss {loss:.4f}")
    for name, pairs in {"random": (source[:M], source_targets[:M]), "distilled": (images, targets)}.items():
        error = judge(*pairs, heldout, heldout_targets)
        print(f"held-out error of students trained on {M} {name} images: {error:.4f}")


if __name__ == "__main__":
    main()
