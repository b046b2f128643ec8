"""A distillation method from outside the package: options, a module and one registration.

It adds the squared error of centred logits to the loss of every student, here in place of the Kullback-Leibler term.

python examples/custom_method.py --data quickstart/data --cache quickstart/cache --out logit-mse
"""

import argparse

import torch.nn.functional as F
from torch import Tensor, nn

import udkd
from udkd.losses.methods.registry import MethodInputs, MethodSetup
from udkd.utils.options import Positive, Section


class LogitMseSection(Section):
    """Options: [methods.logit_mse] of a recipe."""

    scale: Positive = 1.0


@udkd.register_method("logit_mse", LogitMseSection, needs="logits")
class LogitMse(nn.Module):
    """Mean squared error of the logits, each row minus its mean, as cached logits are known up to a constant per row.

    Source: Kim et al., "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation",
    arXiv 2105.08919.
    """

    def __init__(self, options: LogitMseSection, setup: MethodSetup) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: MethodInputs) -> Tensor:
        """The method's term of one student's loss, a scalar."""
        student_BC, teacher_BC = inputs.logits.float(), inputs.teacher_logits.float()
        student_BC, teacher_BC = (z_BC - z_BC.mean(-1, keepdim=True) for z_BC in (student_BC, teacher_BC))
        return self.options.scale * F.mse_loss(student_BC, teacher_BC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="quickstart/data", help="dataset folder")
    parser.add_argument("--cache", default="quickstart/cache", help="teacher cache of that data set")
    parser.add_argument("--out", default="logit-mse", help="run folder to create")
    parser.add_argument("--recipe", default="quickstart", help="shipped recipe or TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    args = parser.parse_args()

    overrides = ["loss.method=logit_mse", "loss.beta=0", "methods.logit_mse.scale=0.1", *args.set]
    recipe = udkd.load_recipe(args.recipe, overrides)
    udkd.train(recipe, data=args.data, cache=args.cache, out=args.out)
    for student in udkd.evaluate(args.out)["students"]:
        print(f"{student['name']}: top-1 {student['top1']:.2f} %")


if __name__ == "__main__":
    main()
