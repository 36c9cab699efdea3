//! Requests in, replies out.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cloister_engine::CompileOptions;
use cloister_sandbox::Sandbox;
use cloister_tensor::TensorMap;

use super::confine;
use super::engine::Engine;
use super::workshop::{Workshop, bad_request};
use crate::blob::SealedBlob;
use crate::channel::{Channel, ChannelError, Received};
use crate::message::{AggregateOrder, Failure, PROTOCOL, Reply, Request};
use crate::options::BackendChoice;
use crate::slots::SharedSlots;
use crate::tensors::SharedTensors;

/// A reply and the memory that goes beside it.
type Answer = (Reply, Vec<SealedBlob>);

/// Serves the keeper until it closes the socket.
pub(super) fn serve(channel: &Channel, confined: impl FnOnce()) -> Result<(), String> {
    let Some(mut workshop) = start(channel)? else {
        return Ok(());
    };
    confined();
    loop {
        let received = match channel.receive::<Request>(None) {
            Ok(received) => received,
            Err(ChannelError::Closed) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let answer = handle(&mut workshop, channel, received)?;
        match reply(channel, answer) {
            Ok(()) => {}
            Err(ChannelError::Closed) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Waits for the start, loads the engine, sets up the sandbox, and closes everything else; `None` if the keeper went away.
fn start(channel: &Channel) -> Result<Option<Workshop>, String> {
    let received = match channel.receive::<Request>(None) {
        Ok(received) => received,
        Err(ChannelError::Closed) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let Request::Start {
        protocol,
        backend,
        openvino_dir,
        library_dir,
        threads,
        precision,
        pinning,
        cpus,
        sandbox,
        limits,
        confinement,
    } = received.message
    else {
        return Err("the keeper did not start with a start".to_owned());
    };
    if protocol != PROTOCOL {
        return Err(format!(
            "the keeper speaks version {protocol} of the messages, this program {PROTOCOL}"
        ));
    }
    let mut gaps = confine::Gaps::default();
    let libraries = match backend {
        BackendChoice::OnnxRuntime | BackendChoice::Libtorch => library_dir,
        BackendChoice::Auto | BackendChoice::OpenVino | BackendChoice::Tract => openvino_dir,
    };
    let libraries = libraries.as_deref().map(Path::new);
    let options = CompileOptions {
        threads: NonZeroUsize::new(threads),
        precision,
        pinning,
    };
    let set_up = || {
        // Before there is another thread: all later ones inherit it, and the engine counts what it may use.
        if let Some(cpus) = &cpus {
            cpus.keep_to()?;
        }
        confine::before_engine(confinement, libraries, &mut gaps)?;
        let engine = Engine::load(backend, libraries, options)?;
        let sandbox = Sandbox::new(sandbox).map_err(|error| error.to_string())?;
        confine::after_engine(
            confinement,
            libraries.filter(|_| engine.lists_folder),
            &limits,
            &mut gaps,
        )?;
        Ok((engine, sandbox))
    };
    let answer = match set_up() {
        Ok((engine, sandbox)) => {
            let started = Reply::Started {
                backend: engine.backend.name().to_owned(),
                note: engine.note.clone(),
                unconfined: gaps.words(),
            };
            reply(channel, Ok((started, Vec::new()))).map_err(|error| error.to_string())?;
            return Ok(Some(Workshop::new(engine, sandbox, limits)));
        }
        Err(message) => Failure::SetUp { message },
    };
    reply(channel, Err(answer)).map_err(|error| error.to_string())?;
    Ok(None)
}

fn reply(channel: &Channel, answer: Result<Answer, Failure>) -> Result<(), ChannelError> {
    match answer {
        Ok((reply, memory)) => {
            let beside: Vec<_> = memory.iter().map(SealedBlob::as_fd).collect();
            channel.send(&reply, &beside, None)
        }
        Err(failure) => channel.send(&Reply::Failed(failure), &[], None),
    }
}

/// Does what is asked. The outer error ends the process; the inner one is the keeper's to know.
fn handle(
    workshop: &mut Workshop,
    channel: &Channel,
    received: Received<Request>,
) -> Result<Result<Answer, Failure>, String> {
    let mut descriptors = received.descriptors.into_iter();
    let mut beside = || {
        descriptors
            .next()
            .ok_or_else(|| bad_request("nothing came beside the request"))
    };
    let plain = |reply: Result<Reply, Failure>| reply.map(|reply| (reply, Vec::new()));
    Ok(match received.message {
        Request::LoadModule { name } => plain(beside().and_then(|file| workshop.load_module(name, file))),
        Request::LoadGraph { name } => plain(beside().and_then(|file| workshop.load_graph(name, file))),
        Request::OpenDataset {
            name,
            file,
            format,
            spec,
            salt,
        } => plain(beside().and_then(|opened| workshop.open_dataset(name, (file, opened), &format, &spec, &salt))),
        Request::Train(order) => beside().and_then(|model| {
            let outcome = workshop.train(order, model)?;
            let tensors = shared(&outcome.tensors)?;
            let trained = Reply::Trained {
                layout: tensors.layout().to_wire(),
                rows: outcome.rows,
                metrics: outcome.metrics,
                log: outcome.log,
            };
            Ok((trained, vec![tensors.blob().clone()]))
        }),
        Request::Evaluate(order) => plain(beside().and_then(|model| {
            let sums = workshop.evaluate(&order, model)?;
            Ok(Reply::Evaluated {
                loss: sums.loss_sum / sums.rows as f64,
                correct: sums.correct,
                rows: sums.rows,
                log: sums.log,
            })
        })),
        Request::Aggregate(order) => match beside() {
            Ok(model) => aggregate(workshop, channel, order, (model, descriptors.collect()))?,
            Err(failure) => Err(failure),
        },
        Request::Start { .. } | Request::Update { .. } | Request::NoMoreUpdates | Request::NoUpdates { .. } => {
            return Err("the keeper sent what was not due".to_owned());
        }
    })
}

/// Calls the aggregator, asking the keeper for each update that it wants.
fn aggregate(
    workshop: &Workshop,
    channel: &Channel,
    order: AggregateOrder,
    beside: (OwnedFd, Vec<OwnedFd>),
) -> Result<Result<Answer, Failure>, String> {
    let mut broken = None;
    let outcome = workshop.aggregate(order, beside, &mut || {
        let next = || -> Result<_, ChannelError> {
            channel.send(&Reply::NextUpdate, &[], None)?;
            channel.receive::<Request>(None)
        };
        match next() {
            Ok(Received {
                message: Request::Update { node, rows, layout },
                descriptors,
            }) => {
                let memory = descriptors.into_iter().next().ok_or("an update without its tensors")?;
                let tensors = workshop
                    .tensors(memory, layout)
                    .map_err(|failure| format!("{failure:?}"))?;
                Ok(Some(cloister_sandbox::WorkerUpdate { node, rows, tensors }))
            }
            Ok(Received {
                message: Request::NoMoreUpdates,
                ..
            }) => Ok(None),
            Ok(Received {
                message: Request::NoUpdates { reason },
                ..
            }) => Err(reason),
            Ok(_) => {
                broken = Some("the keeper sent what was not due".to_owned());
                Err("the keeper broke the protocol".to_owned())
            }
            Err(error) => {
                broken = Some(error.to_string());
                Err("the keeper is gone".to_owned())
            }
        }
    });
    match broken {
        Some(problem) => Err(problem),
        None => Ok(outcome.and_then(|outcome| {
            let tensors = shared(&outcome.tensors)?;
            let slots = SharedSlots::copy_of(&outcome.slots).map_err(|error| bad_request(error.to_string()))?;
            let aggregated = Reply::Aggregated {
                layout: tensors.layout().to_wire(),
                slots: slots.names(),
                metrics: outcome.metrics,
                log: outcome.log,
            };
            let memory = std::iter::once(tensors.blob()).chain(slots.blobs());
            Ok((aggregated, memory.cloned().collect()))
        })),
    }
}

/// Copies tensors into sealed memory for the keeper.
fn shared(tensors: &TensorMap) -> Result<SharedTensors, Failure> {
    SharedTensors::copy_of(tensors).map_err(|error| bad_request(error.to_string()))
}
