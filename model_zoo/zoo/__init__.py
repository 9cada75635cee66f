"""The zoo: named models that `model_zoo.load("NAME")` finds.

In: a name, with or without a revision. Out: the folder of that model on this machine.

Open `named_models.py`. `shipped/` holds the models that come with the package. The recipes that
build the models are in finetune/zoo_build.
"""
