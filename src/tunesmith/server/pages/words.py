"""Every word of the console that stands in no template: what a metric or a state means, menus, orders, moments.

To translate the console is to translate this file and `server/templates`: a test holds that no other file of the pages
has words of its own, nor any script. Names in braces are filled in.
"""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "metrics": {
        "loss": "How surprised the model is by the right answer, in nats a token. Lower is better.",
        "token_accuracy": "Share of the answers' tokens that the model would have chosen, given the right ones before.",
        "completion_accuracy": "Share of the answers in which every token is right: strict, and slow to move.",
        "validation": "Rows that were held out: the model never learned from them.",
        "training": "A fixed sample of the rows that the model learns from.",
    },
    "phases": {
        "preparing": "Checking the rows, counting tokens, planning",
        "loading": "Loading the base model",
        "training": "Training",
        "evaluating": "Measuring on held-out rows",
        "publishing": "Writing and verifying the result",
        "waiting": "Waiting",
    },
}

ROLES = {
    "admin": "May do everything on this server: train, publish, delete, and let others in.",
    "user": "May do what policies allow in the projects that they name: at first all that fine-tuning takes.",
    "anybody": "Needs no token: to see that the server is up, and to read what its interface is.",
}

NOUNS = {  # of permissions and of the audit log
    "alias": "Aliases",
    "audit": "Audit log",
    "dataset": "Datasets",
    "download": "Downloads",
    "hub": "The hub",
    "job": "Jobs",
    "location": "Locations",
    "log": "Logs",
    "model": "Base models",
    "network": "Networks",
    "permission": "Permissions",
    "policy": "Policies",
    "project": "Projects",
    "public": "Without a token",
    "quota": "Quotas",
    "session": "Sessions",
    "set": "Version sets",
    "shape": "Shapes",
    "state": "State folder",
    "system": "The server",
    "token": "Tokens",
    "version": "Model versions",
}

ACTS = {  # of the audit log
    "alias.remove": "removed an alias",
    "alias.set": "set or moved an alias",
    "dataset.add": "added a dataset",
    "dataset.change": "changed a dataset",
    "dataset.delete": "deleted a dataset",
    "download.cancel": "cancelled a download",
    "download.resume": "resumed a download",
    "job.cancel": "cancelled a job",
    "job.delete": "deleted a job",
    "job.pause": "paused a job",
    "job.resume": "resumed a job",
    "job.submit": "submitted a job",
    "location.add": "declared a location",
    "location.change": "changed a location",
    "location.remove": "removed a location",
    "log.add": "made a log",
    "log.change": "changed a log",
    "log.remove": "removed a log",
    "model.change": "changed a base model",
    "model.delete": "took a base model out of the catalog",
    "model.download": "began a download",
    "model.register": "registered a base model",
    "network.add": "declared a network",
    "network.change": "changed a network",
    "network.remove": "removed a network",
    "policy.change": "changed a policy",
    "policy.create": "made a policy",
    "policy.delete": "deleted a policy",
    "project.change": "changed a project",
    "project.create": "made a project",
    "project.delete": "deleted a project",
    "quota.change": "changed quotas",
    "quota.reset": "reset quotas",
    "session.end": "signed out",
    "session.start": "signed in",
    "set.add": "made a version set",
    "set.change": "changed a version set",
    "state.backup": "backed up the state",
    "state.clean": "cleaned the state folder",
    "state.restore": "restored the state",
    "token.create": "made a token",
    "token.revoke": "revoked a token",
    "version.bytes": "deleted a version’s files",
    "version.change": "changed a model version",
    "version.delete": "deleted a model version",
    "version.register": "registered an adapter",
}

QUOTAS = {
    "queued_jobs": ("Unfinished jobs", "at a time, waiting or running"),
    "versions": ("Model versions", "that were not deleted"),
    "datasets": ("Datasets", "that are registered"),
    "uploaded_bytes": ("Uploads", "all datasets that were uploaded together"),
    "log_bytes": ("Log of a job", "the newest that is kept of what its workers write"),
}

STATE_MOVES = {
    "ACCEPTED": "Accepted into the queue",
    "IN_PROGRESS": "Its turn has come",
    "CANCELING": "Canceling: the worker is asked to stop",
    "SUCCEEDED": "Succeeded: the model version is active",
    "FAILED": "Failed",
    "CANCELED": "Canceled",
}

MENU = {
    "home": "Home",
    "models": "Models",
    "datasets": "Datasets",
    "jobs": "Jobs",
    "versions": "Model versions",
    "admin": "Admin",
}

SECTIONS = {  # of Admin: its tab, and what one does there
    "tokens": ("Tokens", "Let programs and colleagues in, and shut them out again."),
    "projects": ("Projects", "Keep apart what teams make: jobs, datasets, model versions."),
    "policies": ("Policies", "Say who may do what in which projects."),
    "permissions": ("Who may do what", "Each permission, and who has it; what one may do in a project."),
    "locations": ("Locations", "Buckets and folders for datasets and results."),
    "logs": ("Logs", "How long, and how much, of what jobs write is kept."),
    "networks": ("Networks", "What several machines of one job talk over."),
    "shapes": ("Shapes", "Machines that jobs may run on, and what is free on them."),
    "quotas": ("Quotas", "How much anybody may take up, and how much they do."),
    "audit": ("Audit", "Who did what, to which object, and when."),
}

FOUND = {  # groups of the search
    "models": "Models",
    "datasets": "Datasets",
    "jobs": "Jobs",
    "versions": "Model versions",
    "sets": "Version sets",
    "locations": "Locations",
    "projects": "Projects",
}

STATES = {
    "ACCEPTED": "Accepted",
    "IN_PROGRESS": "In progress",
    "CREATING": "In progress",
    "WAITING": "Waiting",
    "RUNNING": "Running",
    "CANCELING": "Canceling",
    "SUCCEEDED": "Succeeded",
    "ACTIVE": "Active",
    "FAILED": "Failed",
    "CANCELED": "Canceled",
    "DELETED": "Deleted",
}

MOMENTS = {  # of a job's timeline
    "attempt": "Attempt {number} started",
    "resumed": "It goes on after step {step:,}.",
    "checkpoint": "Checkpoint after step {step:,}",
    "failed": "The attempt failed",
    "failed_retried": "The attempt failed, another one follows",
    "finished": "Training is done; epoch {epoch} is the best",
}

NEEDS = {  # what needs attention: what is told, and where its link leads
    "waiting": ("{job} cannot go on: {reason}", "Look at the job"),
    "failed": ("{jobs} failed in the last 24 hours.", "Failed jobs"),
    "token": ("The token {token} expires on {day}.", "Make another one"),
    "quota": ("{principal} uses {share:.0%} of a quota: {quota}.", "Quotas"),
}

CHARTS = {
    "loss": "Loss",
    "token_accuracy": "Token accuracy",
    "of_epochs": "{title} of {version} by epoch",
    "overfitting": "overfitting",
    "validation_of_two": "Validation loss of {versions}",
    "running_of_two": "Running loss of {versions}",
    "two": "{left} and {right}",
    "of_a_set": "Validation loss of the versions of {set}",
    "validation_loss": "validation loss",
    "lineage": "Lineage of {version}",
    "epoch": "epoch",
    "step": "step",
    "version": "version",
}

MODEL_ORDERS = {
    "relevance": "What is here first",
    "name": "By name",
    "smallest": "Smallest first",
    "largest": "Largest first",
    "context": "Longest context first",
    "newest": "Newest here first",
}
HUB_ORDERS = {
    "downloads": "Most downloaded",
    "likes": "Most liked",
    "trending_score": "Trending",
    "last_modified": "Changed last",
}
HUB_TASKS = {
    "text-generation": "Text generation",
    "image-text-to-text": "Images and text",
    "text2text-generation": "Text to text",
    "any": "Any task",
}

LIFETIMES = {"30": "30 days", "90": "90 days", "365": "a year", "": "until it is revoked"}  # of a token, in days

FIELDS = {  # of the Fine Tune form, where the setting's name is not enough
    "learning_rate_schedule": "Decay of the learning rate",
    "max_gradient_norm": "Highest gradient norm",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
    "target_modules": "Target modules",
    "too_long": "Rows that are too long",
    "duplicates": "Equal rows",
    "global_batch_size": "Rows of a step",
    "micro_batch_size": "Packed rows of a forward pass",
    "adapter": "Kind of adapter",
    "path": "Code of the layers",
    "checkpointed_layers": "Layers computed twice",
    "log": "Log",
    "from_version": "Goes on from",
    "results": "Results location",
    "priority": "Priority in the queue",
    "run_limit_seconds": "Longest running time",
}
FIELD_GROUPS = {"adapter": "Adapter", "rows": "Rows", "optimiser": "Optimiser", "machine": "Machine"}
EXAMPLE_ROWS = "example dialogues, {role}"

CODE_KINDS = {"python": "Python", "curl": "curl", "command": "Command line"}
CODE_PROMPT = "Where is my order?"
