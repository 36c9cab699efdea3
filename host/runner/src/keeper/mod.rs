//! The keeper's handle to its runner.

mod loading;
mod replies;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::channel::{ChannelError, Received};
use crate::error::{Death, RunnerError};
use crate::message::{AggregateOrder, EvaluateOrder, PROTOCOL, Reply, Request, TrainOrder};
use crate::options::{RunnerLimits, RunnerOptions};
use crate::process::{Process, RunnerKiller};
use crate::requests::{
    AggregateReply, AggregateRequest, EvaluateReply, EvaluateRequest, TrainReply, TrainRequest, WorkerUpdate,
};
use crate::slots::SharedSlots;
use loading::Load;
use replies::reported;

/// A runner process, asked one thing at a time. All calls block; dropping it ends the process.
#[derive(Debug)]
pub struct Runner {
    options: RunnerOptions,
    process: Option<Process>,
    loaded: Vec<Load>,
    backend: String,
    note: Option<String>,
    unconfined: Option<String>,
}

impl Runner {
    /// Starts a runner and waits until its engine is loaded.
    ///
    /// # Errors
    /// The process can't be started, or sets nothing up, or says nothing in time.
    pub fn start(options: RunnerOptions) -> Result<Self, RunnerError> {
        let mut runner = Self {
            options,
            process: None,
            loaded: Vec::new(),
            backend: String::new(),
            note: None,
            unconfined: None,
        };
        runner.launch()?;
        Ok(runner)
    }

    /// The engine that runs graphs, with its version.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Why the engine is not the one that was hoped for, if so.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// What this kernel could not take from the process, if anything: only with
    /// [`Confinement::WherePossible`](crate::Confinement::WherePossible).
    pub fn unconfined(&self) -> Option<&str> {
        self.unconfined.as_deref()
    }

    /// The process's id; `None` once it died.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.killer().pid())
    }

    /// What ends the process from another thread, during a call for instance.
    pub fn killer(&self) -> Option<RunnerKiller> {
        self.process.as_ref().map(Process::killer)
    }

    /// Ends the process; [`restart`](Self::restart) brings it back.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts a new process in the place of the old one, dead or not, and loads everything again.
    ///
    /// # Errors
    /// As [`start`](Self::start) and the loading calls.
    pub fn restart(&mut self) -> Result<(), RunnerError> {
        self.process = None;
        self.launch()?;
        let loaded = std::mem::take(&mut self.loaded);
        let mut outcome = Ok(());
        for load in &loaded {
            outcome = outcome.and_then(|()| self.send_load(load).map(drop));
        }
        self.loaded = loaded;
        outcome
    }

    /// Calls a trainer.
    ///
    /// # Errors
    /// The module broke a rule ([`RunnerError::Module`]), or the runner died or was ended because it was late.
    pub fn train(&mut self, request: &TrainRequest) -> Result<TrainReply, RunnerError> {
        const DURING: &str = "training";
        let started = Instant::now();
        let order = Request::Train(TrainOrder {
            module: request.module.clone(),
            settings: request.settings.clone(),
            grants: request.grants.clone(),
            graphs: request.graphs.clone(),
            datasets: request.datasets.clone(),
            transforms: request.transforms.clone(),
            round: request.round,
            update: request.update,
            limits: request.limits.clone(),
            model: request.model.layout().to_wire(),
        });
        let received = self.ask(
            DURING,
            &order,
            &[request.model.blob().as_fd()],
            started + request.timeout,
        )?;
        match received.message {
            Reply::Trained {
                layout,
                rows,
                metrics,
                log,
            } => {
                let tensors = self.take_tensors(
                    DURING,
                    received.descriptors.into_iter().next(),
                    layout,
                    request.model.layout(),
                )?;
                self.check_words(DURING, &metrics, &log, request.limits.log_bytes)?;
                Ok(TrainReply {
                    tensors,
                    rows,
                    metrics,
                    log,
                    elapsed: started.elapsed(),
                })
            }
            other => Err(self.unexpected(DURING, &other)),
        }
    }

    /// Runs evaluation graphs over a dataset.
    ///
    /// # Errors
    /// A graph or dataset is not there or does not fit the model, a graph fails, or the runner dies.
    pub fn evaluate(&mut self, request: &EvaluateRequest) -> Result<EvaluateReply, RunnerError> {
        const DURING: &str = "evaluation";
        let started = Instant::now();
        let order = Request::Evaluate(EvaluateOrder {
            graphs: request.graphs.clone(),
            dataset: request.dataset.clone(),
            transforms: request.transforms.clone(),
            limits: request.limits.clone(),
            model: request.model.layout().to_wire(),
        });
        let received = self.ask(
            DURING,
            &order,
            &[request.model.blob().as_fd()],
            started + request.timeout,
        )?;
        match received.message {
            Reply::Evaluated {
                loss,
                correct,
                rows,
                log,
            } if correct.is_none_or(|correct| correct <= rows) && rows > 0 => {
                self.check_words(DURING, &[], &log, request.limits.log_bytes)?;
                Ok(EvaluateReply {
                    loss,
                    correct,
                    rows,
                    log,
                    elapsed: started.elapsed(),
                })
            }
            other => Err(self.unexpected(DURING, &other)),
        }
    }

    /// Calls an aggregator. `updates` is called for each update that the module asks for, on this thread, until it gives `None`.
    ///
    /// # Errors
    /// As [`train`](Self::train); [`RunnerError::Updates`] if `updates` fails.
    pub fn aggregate(
        &mut self,
        request: &AggregateRequest,
        updates: &mut dyn FnMut() -> Result<Option<WorkerUpdate>, String>,
    ) -> Result<AggregateReply, RunnerError> {
        const DURING: &str = "aggregation";
        let started = Instant::now();
        let mut deadline = started + request.timeout;
        let order = Request::Aggregate(AggregateOrder {
            module: request.module.clone(),
            settings: request.settings.clone(),
            statistics: request.statistics.clone(),
            round: request.round,
            update: request.update,
            limits: request.limits.clone(),
            model: request.model.layout().to_wire(),
            slots: request.slots.names(),
        });
        let memory = std::iter::once(request.model.blob()).chain(request.slots.blobs());
        let beside: Vec<BorrowedFd<'_>> = memory.map(AsFd::as_fd).collect();
        let mut received = self.ask(DURING, &order, &beside, deadline);
        let mut failed = None;
        loop {
            let reply = match (received, failed.take()) {
                // The module's error only repeats what the updates' failure was.
                (Err(RunnerError::Module(_)), Some(reason)) => return Err(RunnerError::Updates(reason)),
                (received, _) => received?,
            };
            match reply.message {
                Reply::NextUpdate => {
                    let asked = Instant::now();
                    let next = updates();
                    deadline += asked.elapsed();
                    let (answer, tensors) = match next {
                        Ok(Some(update)) => {
                            let layout = update.tensors.layout().to_wire();
                            (
                                Request::Update {
                                    node: update.node,
                                    rows: update.rows,
                                    layout,
                                },
                                Some(update.tensors),
                            )
                        }
                        Ok(None) => (Request::NoMoreUpdates, None),
                        Err(reason) => {
                            let reason: String = reason.chars().take(400).collect();
                            failed = Some(reason.clone());
                            (Request::NoUpdates { reason }, None)
                        }
                    };
                    let memory: Vec<BorrowedFd<'_>> = tensors.iter().map(|tensors| tensors.blob().as_fd()).collect();
                    received = self.ask(DURING, &answer, &memory, deadline);
                }
                Reply::Aggregated {
                    layout,
                    slots,
                    metrics,
                    log,
                } => {
                    let mut descriptors = reply.descriptors.into_iter();
                    let (model, wanted) = (descriptors.next(), request.model.layout());
                    let tensors = self.take_tensors(DURING, model, layout, wanted)?;
                    let slots = SharedSlots::accept(slots, descriptors, wanted.tensor_bytes())
                        .map_err(|error| self.misbehaved(DURING, error.to_string()))?;
                    self.check_words(DURING, &metrics, &log, request.limits.log_bytes)?;
                    return Ok(AggregateReply {
                        tensors,
                        slots,
                        metrics,
                        log,
                        elapsed: started.elapsed(),
                    });
                }
                other => return Err(self.unexpected(DURING, &other)),
            }
        }
    }

    fn limits(&self) -> &RunnerLimits {
        &self.options.limits
    }

    fn launch(&mut self) -> Result<(), RunnerError> {
        const DURING: &str = "its start";
        self.process = Some(Process::start(&self.options)?);
        let path = |dir: &Option<PathBuf>| dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
        let start = Request::Start {
            protocol: PROTOCOL,
            backend: self.options.backend,
            openvino_dir: path(&self.options.openvino_dir),
            library_dir: path(&self.options.library_dir),
            threads: self.options.threads,
            precision: self.options.precision,
            pinning: self.options.pinning,
            cpus: self.options.cpus.clone(),
            sandbox: self.options.sandbox.clone(),
            limits: self.options.limits.clone(),
            confinement: self.options.confinement,
        };
        let received = self.ask(DURING, &start, &[], Instant::now() + self.limits().start)?;
        match received.message {
            Reply::Started {
                backend,
                note,
                unconfined,
            } => {
                let cut = |text: String| text.chars().take(1024).collect();
                self.backend = backend.chars().take(256).collect();
                self.note = note.map(cut);
                self.unconfined = unconfined.map(cut);
                tracing::debug!(backend = self.backend, pid = self.pid(), "runner started");
                Ok(())
            }
            other => Err(self.unexpected(DURING, &other)),
        }
    }

    /// Sends a request and waits for its reply. A failure that the runner reports is an error, after which it goes on; any
    /// other trouble ends it.
    fn ask(
        &mut self,
        during: &'static str,
        request: &Request,
        beside: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<Received<Reply>, RunnerError> {
        let process = self.process.as_ref().ok_or(RunnerError::NotRunning)?;
        process.allow_computing(deadline.saturating_duration_since(Instant::now()));
        let sent = process.channel.send(request, beside, Some(deadline));
        let received = sent.and_then(|()| process.channel.receive::<Reply>(Some(deadline)));
        process.allow_computing(Duration::ZERO);
        match received {
            Ok(Received {
                message: Reply::Failed(failure),
                ..
            }) => Err(reported(failure)),
            Ok(received) => Ok(received),
            Err(error) => Err(self.died(during, error)),
        }
    }

    /// Ends the process and says why.
    fn died(&mut self, during: &'static str, error: ChannelError) -> RunnerError {
        let Some(process) = self.process.take() else {
            return RunnerError::NotRunning;
        };
        let how = match error {
            ChannelError::Closed => process.death(),
            ChannelError::Deadline => Death::Late,
            ChannelError::Protocol(problem) => Death::Misbehaved(problem),
            other => Death::Misbehaved(match std::error::Error::source(&other) {
                Some(cause) => format!("{other}: {cause}"),
                None => other.to_string(),
            }),
        };
        process.kill();
        RunnerError::Died {
            during,
            how,
            stderr: process.last_words(),
        }
    }

    fn misbehaved(&mut self, during: &'static str, problem: impl Into<String>) -> RunnerError {
        self.died(during, ChannelError::Protocol(problem.into()))
    }

    fn unexpected(&mut self, during: &'static str, reply: &Reply) -> RunnerError {
        let text: String = format!("{reply:?}").chars().take(80).collect();
        self.misbehaved(during, format!("unexpected reply {text}"))
    }
}
