"""``infini-study cluster``: a Ray cluster of several nodes on this machine, studies as jobs, files for larger ones."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, Root, Set, StudyFile, Tracking, at_most
from pipeline.cli.places import check_folder, place
from pipeline.cli.render import line, note, print_json, table
from pipeline.errors import ClusterUnreachable, StudyError, suggestion

app = typer.Typer(
    name="cluster", help="Ray clusters: on this machine, and files to make larger ones.", no_args_is_help=True
)

To = Annotated[
    str | None,
    typer.Option("--to", metavar="URL", help="The cluster's dashboard (default: that of this machine's cluster)."),
]


@contextmanager
def _errors() -> Iterator[None]:
    """What the package cluster raises, as errors of the command line."""
    from cluster.connect import ClusterError

    try:
        yield
    except ClusterError as error:
        raise ClusterUnreachable(str(error)) from error


@app.command()
def up(
    nodes: Annotated[
        int, typer.Option("--nodes", "-n", min=1, callback=at_most(256, "--nodes"), help="Nodes beside the head.")
    ] = 2,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus",
            min=1,
            callback=at_most(1000, "--cpus"),
            help="CPUs of each (default: this machine's, shared out).",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=0, callback=at_most(1000, "--gpus"), help="GPUs of each.")] = 0,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; one that others reach needs the token to connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the head; 0: a free one.")] = 6379,
    dashboard_port: Annotated[int, typer.Option("--dashboard-port", min=0, max=65535, help="0: a free one.")] = 8265,
    json: Json = False,
) -> None:
    """Start a cluster of several nodes on this machine."""
    from cluster import machines, noted

    with _errors():
        made = machines.up(nodes, cpus=cpus, gpus=gpus, host=host, port=port, dashboard_port=dashboard_port, say=note)
    if json:
        print_json("cluster", {"address": made.address, "dashboard": made.dashboard, "nodes": nodes})
        return
    line(f"cluster    {made.address}; dashboard {made.dashboard}; logs in {made.folder}")
    if machines.has_job_server():
        line("use it     infini-study run STUDY --address auto, or infini-study cluster submit STUDY")
    else:
        line("use it     infini-study run STUDY --address auto")
        note("no job server, so nothing can be submitted. Fix: pip install 'infini-study[cluster]', then down and up")
    if not machines.is_loopback(host):
        line(f"elsewhere  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=a copy of {noted.token_file()}")
    line("end it     infini-study cluster down")


@app.command()
def status(json: Json = False) -> None:
    """The nodes of this machine's cluster and the jobs submitted to it."""
    from cluster import jobs, machines
    from cluster.connect import ClusterError
    from cluster.noted import alive, noted

    cluster = noted()
    if cluster is None:
        raise ClusterUnreachable("cluster: none of this user's runs on this machine. Fix: infini-study cluster up")
    with _errors():
        found = machines.nodes(cluster, note)
    try:
        submitted = jobs.jobs(cluster.dashboard, _HERE, note)
    except ClusterError:
        submitted = []  # without a job server there are none
    lost = [p.name for p in cluster.processes if not alive(p)]
    if json:
        listed = [{"job": job, "status": state, "command": command} for job, state, command in submitted]
        body = {"address": cluster.address, "dashboard": cluster.dashboard, "nodes": found, "lost": lost}
        print_json("cluster", {**body, "jobs": listed})
        return
    rows = [
        [node["name"], node["address"], *(f"{node['resources'][kind]:g}" for kind in ("CPU", "GPU"))]
        for node in sorted(found, key=lambda node: str(node["name"]))
    ]
    table(["node", "address", "CPUs", "GPUs"], rows)
    if lost:
        note(f"ended: {', '.join(lost)} (logs in {cluster.folder})")
    if submitted:
        table(["job", "status", "command"], [list(row) for row in submitted[:20]])
    line(f"cluster {cluster.address}; dashboard {cluster.dashboard}")


@app.command()
def down(json: Json = False) -> None:
    """End this machine's cluster: what ``up`` started and nothing else."""
    from cluster import machines
    from cluster.noted import noted

    cluster = noted()
    ended = machines.down(cluster) if cluster is not None else 0
    if json:
        print_json("cluster", {"ended": ended})
    else:
        line(f"{ended} nodes ended" if ended else "no cluster of this user runs on this machine")


@app.command()
def submit(
    study: StudyFile,
    set_: Set = None,
    root: Root = None,
    tracking: Tracking = None,
    to: To = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for its end.")] = False,
    json: Json = False,
) -> None:
    """Run a study as a job on a cluster; its log is followed, its exit code is this command's. Submitting it again is
    resuming."""
    from cluster import jobs
    from cluster.storage import StorageError, check_bare, redacted
    from pipeline.study.load import load

    try:
        check_bare(root or "", "--root")  # it will stand on the job's command line
    except StorageError as error:
        raise StudyError(str(error)) from error
    load(study, set_ or ())  # what is wrong with it is said here, not in a log elsewhere
    url, field, same_machine = _dashboard(to)
    with tempfile.TemporaryDirectory() as folder, _errors():
        if same_machine:
            command = [sys.executable, "-m", "infini_study", "run", str(study.resolve())]
            place = str(Path(root).resolve()) if root and "://" not in root else root
            command += ["--root", place or str(Path("runs/store").resolve())]
        else:
            if root is None or "://" not in root:
                raise StudyError(
                    f"--root = {root!r}: nodes of another machine's cluster cannot reach it (allowed: a URL such as "
                    "s3://bucket/store). Fix: give storage that all of them reach"
                )
            (Path(folder) / study.name).write_bytes(study.read_bytes())
            command = ["infini-study", "run", study.name, "--root", root]
        command += ["--address", "auto", "--no-progress"]
        for change in set_ or ():
            command += ["--set", change]
        env = {"MLFLOW_TRACKING_URI": tracking} if tracking else {}
        env |= {name: os.environ[name] for name in _FORWARDED if same_machine and name in os.environ}
        job = jobs.submit(url, command, files=None if same_machine else folder, env=env, field=field, say=note)
    if detach:
        if json:
            print_json("cluster", {"job": job, "dashboard": redacted(url), "status": "RUNNING", "exit_code": 0})
            return
        line(f"job        {job}")
        line(f"follow it  {_command('follow', job, to)}")
        line(f"end it     {_command('stop', job, to)}")
        return
    note(f"job {job}; Ctrl-C leaves it running, and then: {_command('follow', job, to)}")
    _followed(url, job, field, to, json)


@app.command()
def follow(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: submit and status say it.")],
    to: To = None,
    json: Json = False,
) -> None:
    """The log of a job from its beginning, until it ends; its exit code is this command's."""
    url, field, _ = _dashboard(to)
    _followed(url, job, field, to, json)


@app.command()
def stop(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of a job: submit and status say it.")],
    to: To = None,
    json: Json = False,
) -> None:
    """End a job; what the study finished is kept, and submitting it again goes on from there."""
    from cluster import jobs
    from cluster.storage import redacted

    url, field, _ = _dashboard(to)
    with _errors(), _known(url, job, field):
        state = jobs.stop(url, job, field, note)
    if json:
        print_json("cluster", {"job": job, "dashboard": redacted(url), "status": state})
    else:
        line(f"job {job}: {state}")
    if state not in jobs.ENDED:
        raise typer.Exit(1)


_HERE = "dashboard of this machine's cluster"


def _dashboard(to: str | None) -> tuple[str, str, bool]:
    """URL of the dashboard, what it is called in errors, and whether it is that of this machine's own cluster."""
    from cluster.noted import noted

    here = noted()
    if to is not None:
        return to, "--to", here is not None and to.rstrip("/") == here.dashboard
    if here is None:
        raise ClusterUnreachable(
            "--to: not given, and no cluster of this user runs on this machine. Fix: give the address of a cluster's "
            "dashboard, or start one: infini-study cluster up"
        )
    return here.dashboard, _HERE, True


def _command(what: str, job: str, to: str | None) -> str:
    """A command that can be pasted."""
    from cluster.storage import redacted

    place = "" if to is None else f" --to {shlex.quote(redacted(to))}"
    return f"infini-study cluster {what} {job}{place}"


@contextmanager
def _known(url: str, job: str, field: str) -> Iterator[None]:
    from cluster import jobs

    try:
        yield
    except jobs.UnknownJob as error:
        known = suggestion(job, [one for one, _, _ in jobs.jobs(url, field, note)])
        raise StudyError(f"JOB = {job!r}: the cluster has no such job{known}. Fix: name one") from error


_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "PYTHONPATH")
"""Of this shell's environment, what a job on the same machine needs as well; elsewhere the nodes have their own."""


def _followed(url: str, job: str, field: str, to: str | None, json: bool) -> None:
    """Follow the job and end as it ends."""
    from cluster import jobs
    from cluster.storage import redacted

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        with _errors(), _known(url, job, field):
            state, code = jobs.follow(url, job, write, field, note)
    except KeyboardInterrupt:
        note(f"no longer followed, the job goes on; end it with: {_command('stop', job, to)}")
        raise
    if json:
        print_json("cluster", {"job": job, "dashboard": redacted(url), "status": state, "exit_code": code})
    else:
        line(f"job {job}: {state}")
    if code:
        raise typer.Exit(code)


@app.command()
def files(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", parser=place("FOLDER"), help="Folder to write into.")] = Path(
        "cluster"
    ),
    json: Json = False,
) -> None:
    """Write the files that make larger clusters: KubeRay, Ray's autoscaler, Slurm, Docker. None is overwritten."""
    from cluster.deployment import deployment_files

    found = deployment_files()
    check_folder("FOLDER", to)
    taken = [name for name in found if (to / name).exists()]
    if taken:
        raise StudyError(f"FOLDER = {str(to)!r}: {taken[0]} is there already. Fix: name another folder")
    to.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        (to / name).write_bytes(content)
    (to / "slurm.sh").chmod(0o755)
    if json:
        print_json("cluster", {"folder": str(to), "files": sorted(found)})
    else:
        line(f"{to}: {', '.join(sorted(found))}; each begins with how it is used")
