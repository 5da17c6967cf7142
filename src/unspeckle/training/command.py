"""What `train`, `train --lora` and `distil` have in common: decide on a plan or load one, then carry out its tasks."""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Generic, TypeVar

import torch
from rich.console import Console

from unspeckle import configuration
from unspeckle.model_io.model_file import MODEL_FILE
from unspeckle.model_io.process_memory import keep_freed_memory
from unspeckle.training import checkpoint
from unspeckle.training.check_options import check_output_options
from unspeckle.training.errors import TrainingError
from unspeckle.training.log_file import TrainingLog
from unspeckle.training.measurement import PrintLine
from unspeckle.training.options import Options
from unspeckle.training.plan import PlanT
from unspeckle.training.plan_file import check_options_unchanged, load_plan, save_plan
from unspeckle.training.plan_table import plan_table
from unspeckle.training.progress import ProgressReport
from unspeckle.training.progress_view import ProgressView
from unspeckle.training.run_folder import check_run_folder, lock_run
from unspeckle.training.signals import stop_on_signal
from unspeckle.training.task import Task
from unspeckle.training.trainer import ShouldStop, fit

EXIT_DONE, EXIT_FAILED, EXIT_STOPPED = 0, 1, 130

OptionsT = TypeVar("OptionsT", bound=Options)


class TrainingCommand(ABC, Generic[OptionsT, PlanT]):
    """A command that trains: what it needs to make a plan, and the tasks of the plan. run() does the rest."""

    plan_class: type[PlanT]
    # In RUN: when it is there, the run is finished
    output_file = MODEL_FILE

    def __init__(self, options: OptionsT) -> None:
        self.options = options
        self.start_time = time.monotonic()
        self.console = Console(stderr=True, quiet=options.quiet)

    @abstractmethod
    def check_options(self) -> None:
        """InputError for options that cannot be, before any long work. Of a run that is continued they are known."""

    @abstractmethod
    def open_inputs(self, plan: PlanT | None) -> None:
        """Find what the training needs, before RUN is made. InputError if it is not there, or not of the right kind."""

    @abstractmethod
    def load_inputs(self, plan: PlanT | None) -> None:
        """Load what takes long."""

    @abstractmethod
    def make_plan(self) -> PlanT:
        """Decide all that the options leave open."""

    @abstractmethod
    def check_inputs_unchanged(self, plan: PlanT) -> None:
        """InputError if the plan was made for other inputs."""

    @abstractmethod
    def tasks(self, plan: PlanT) -> Iterator[Task]:
        """The tasks of the plan in order, each made when the one before is finished."""

    @abstractmethod
    def advice_when_finished(self) -> str:
        """How to use what RUN holds at the end."""

    def write_run_files(self, plan: PlanT) -> None:
        """Write into a new RUN what a continued run needs besides the plan."""

    @property
    def output_path(self) -> Path:
        return self.options.out / self.output_file

    def print_line(self, line: str) -> None:
        """A line for the person, not part of the result."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def run(self) -> int:
        """Do what the options say, and return the exit code. InputError if options or inputs do not allow it."""
        with self._open_run() as plan:
            if plan is None:
                return self._print_output()
            if self.options.plan_only:
                if self.options.json:
                    print(json.dumps(configuration.to_json(plan)))
                return EXIT_DONE
            return self._train(plan)

    def plan(self) -> PlanT:
        """The plan of the run, whose options are plan_only. InputError if options or inputs do not allow it, or if the
        run is finished."""
        with self._open_run() as plan:
            assert plan is not None  # only of a finished run that is not plan_only
            return plan

    def reports(self) -> Generator[ProgressReport]:
        """Do the same for a program that shows the reports itself; of a run that was finished before there are none.

        Ctrl-C, the stop button of a notebook and a loop that is left leave a checkpoint. InputError if options or
        inputs do not allow it, TrainingError if training fails."""
        with self._open_run() as plan:
            if plan is None:
                return
            self._set_threads(plan)
            with stop_on_signal() as should_stop:
                for task in self.tasks(plan):
                    yield from save_if_left(task, logged_reports(task, should_stop, self.print_line))
                    if should_stop() and not self.output_path.exists():
                        return

    @contextmanager
    def _open_run(self) -> Iterator[PlanT | None]:
        """The plan of the run, which is locked meanwhile: of a new one or of one that is resumed; None if it is
        finished."""
        options = self.options
        check_output_options(options)
        # Squares of the first gradients, behind weights that begin at zero, are often below 1e-38. Such numbers take
        # some CPUs a hundred times as long. Threads that torch starts later do as this one.
        torch.set_flush_denormal(True)
        plan = load_plan(options.out, self.plan_class)
        if plan is None:
            self.check_options()
        else:
            check_options_unchanged(plan, options)
            if self.output_path.exists() and not options.plan_only:
                self.print_line(f"this run is finished; {self.advice_when_finished()}")
                yield None
                return
        check_run_folder(options.out, plan)
        self.open_inputs(plan)
        with nullcontext() if options.plan_only else lock_run(options.out):
            keep_freed_memory()
            self.load_inputs(plan)
            is_resumed = plan is not None
            if plan is None:
                plan = self.make_plan()
            else:
                self.check_inputs_unchanged(plan)
            self.console.print(plan_table(plan, checkpoint.latest_step(options.out) if is_resumed else 0))
            if not is_resumed and not options.plan_only:
                self.write_run_files(plan)
                save_plan(plan, options.out)
            yield plan

    def _set_threads(self, plan: PlanT) -> None:
        if plan.compute.threads != torch.get_num_threads() and plan.compute.device == "cpu":
            torch.set_num_threads(plan.compute.threads)

    def _train(self, plan: PlanT) -> int:
        """Carry out the tasks of the plan, to the end or until somebody stops them."""
        self._set_threads(plan)
        last_report = None
        try:
            with stop_on_signal() as should_stop:
                for task in self.tasks(plan):
                    with ProgressView(task.plan.work.steps, self.console, self.options.quiet) as view:
                        for last_report in logged_reports(task, should_stop, self.print_line):
                            view.show_report(last_report)
                    if should_stop() and not self.output_path.exists():
                        break
        except TrainingError as error:
            print(f"{self.options.out}: {error}", file=sys.stderr)
            return EXIT_FAILED
        if not self.output_path.exists():
            self.print_line("stopped, with a checkpoint; the same command continues from here")
            return EXIT_STOPPED
        if last_report is not None and last_report.validation is not None:
            self.print_line(last_report.validation.summary)
        return self._print_output()

    def _print_output(self) -> int:
        print(self.output_path.absolute())
        return EXIT_DONE


def logged_reports(task: Task, should_stop: ShouldStop, print_line: PrintLine) -> Generator[ProgressReport]:
    """Train a task, writing its reports to RUN/log.jsonl."""
    log = TrainingLog(task.run_folder, checkpoint.latest_step(task.run_folder))
    if log.tensorboard is None:
        print_line("no TensorBoard events without the package tensorboard; log.jsonl has the same")
    with closing(log):
        for report in fit(task, should_stop):
            log.write_report(report, report.step * task.plan.work.batch_size)
            yield report


def save_if_left(task: Task, reports: Generator[ProgressReport]) -> Generator[ProgressReport]:
    """The task's reports; who leaves the loop at one that came without a checkpoint gets one."""
    with closing(reports):
        for report in reports:
            try:
                yield report
            except GeneratorExit:
                if report.saved_path is None:
                    task.save_checkpoint(report.step)
                raise
