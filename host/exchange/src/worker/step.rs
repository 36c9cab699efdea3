//! The parts of a round at a worker: the model in, the training, the update out.

use std::time::Instant;

use cloister_rounds::reception::require_finite;
use cloister_rounds::{Layout, Reception, UpdateRefusal};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::{self as wire, aggregator_message, member_message};

use crate::chunks::Chunks;
use crate::error::ExchangeError;
use crate::sink::SinkError;
use crate::work::{LocalUpdate, ModuleFailure, RoundInfo, WorkError, WorkerWork};

use super::SessionEnd;
use super::session::{Inbound, Session, dropped_end, next, out_of_place};

/// How the training ended.
pub(super) enum Trained {
    Done(Result<(LocalUpdate, Digest, Layout), ModuleFailure>, f64),
    /// The connection said something final meanwhile.
    Ended(SessionEnd),
}

impl Session<'_> {
    /// Receives the model into a buffer of the node's sink; `None` if the call ended amid it.
    pub(super) async fn receive(
        &mut self,
        layout: Layout,
        announced: Digest,
        inbound: &mut Inbound,
    ) -> Result<Option<TensorMap>, ExchangeError> {
        let mut buffer = self.options.sink.create(layout.buffer_bytes())?;
        let mut reception = Reception::new(layout, announced);
        while !reception.complete() {
            let chunk = match next(inbound).await? {
                Some(aggregator_message::Body::ModelChunk(chunk)) => chunk,
                Some(aggregator_message::Body::Dropped(dropped)) => {
                    dropped_end(&dropped)?;
                    return Ok(None);
                }
                Some(_) => return Err(out_of_place("another message", "a model was on its way")),
                None => return Ok(None),
            };
            reception.accept(&chunk.data, |bytes| buffer.write(bytes).map_err(ReceiveError::Sink))?;
        }
        let received = reception.finish().map_err(ReceiveError::Refusal)?;
        let checked = tokio::task::spawn_blocking(move || Ok::<_, ReceiveError>(received.check(&buffer.finish()?)?));
        let tensors = checked
            .await
            .map_err(|error| WorkError::new("checking the model", error))??;
        Ok(Some(tensors))
    }

    /// Trains on another thread. Meanwhile results are taken as they come, and one other message is read ahead: if it ends things, they
    /// end now.
    pub(super) async fn train(
        &mut self,
        info: RoundInfo,
        model: TensorMap,
        inbound: &mut Inbound,
        work: &mut Option<Box<dyn WorkerWork>>,
    ) -> Result<Trained, ExchangeError> {
        let panicked = || WorkError::new("training", "its thread panicked");
        let mut worker = work.take().ok_or_else(panicked)?;
        let mut training = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let layout = Layout::of(&model);
            let result = worker.train(&info, model);
            let train_s = started.elapsed().as_secs_f64();
            let result = result.and_then(|update| announce(update, layout));
            (worker, result, train_s)
        });
        let cancel = self.options.cancel.clone();
        let mut end = None;
        let (worker, result, train_s) = loop {
            tokio::select! {
                trained = &mut training => break trained.map_err(|_| panicked())?,
                body = next(inbound), if self.stash.is_none() && end.is_none() => match body {
                    Ok(Some(aggregator_message::Body::Dropped(dropped))) => end = Some(dropped_end(&dropped)),
                    Ok(Some(aggregator_message::Body::RoundResult(result))) if self.alone() => {
                        if let Err(error) = self.result(result).await {
                            // What the aggregator did wrong is said to it as well.
                            self.leave(&error.to_string(), inbound).await?;
                            end = Some(Err(error));
                        }
                    }
                    Ok(Some(aggregator_message::Body::Finish(finish))) if self.alone() => {
                        end = Some(self.finish(&finish, inbound).await);
                        // What is still computed is of no use: the node may end it.
                        cancel.cancel();
                    }
                    Ok(Some(body)) => self.stash = Some(body),
                    Ok(None) => {
                        let why = "the aggregator ended the call during training".to_owned();
                        end = Some(Ok(SessionEnd::Again { why }));
                    }
                    Err(error) => end = Some(Err(error)),
                },
                () = cancel.cancelled(), if end.is_none() => {
                    end = Some(self.leave("the node stops", inbound).await);
                }
            }
        };
        *work = Some(worker);
        if end.is_none() && cancel.is_cancelled() {
            // Both came at once: a training that was cut off by the node's own end is no failure of its module.
            end = Some(self.leave("the node stops", inbound).await);
        }
        match end {
            Some(end) => end.map(Trained::Ended),
            None => Ok(Trained::Done(result, train_s)),
        }
    }

    pub(super) async fn upload(&mut self) -> Result<Option<SessionEnd>, ExchangeError> {
        let update = self.running.as_mut().and_then(|running| running.update.take());
        let Some(update) = update else {
            return Err(out_of_place("a grant", "no update waits"));
        };
        let chunks = Chunks::new(&update);
        drop(update);
        for data in chunks {
            if !self.send(member_message::Body::UpdateChunk(wire::Chunk { data })).await {
                break; // the stream has ended; reading it says how
            }
        }
        Ok(None)
    }
}

/// Digest and layout of an update, and the checks that the aggregator would make as well.
fn announce(
    update: LocalUpdate,
    wanted: Result<Layout, cloister_rounds::LayoutError>,
) -> Result<(LocalUpdate, Digest, Layout), ModuleFailure> {
    let failure = |code: &str, message: String| ModuleFailure {
        code: code.to_owned(),
        module: None,
        message,
    };
    let wrong_shape = |error: cloister_rounds::LayoutError| failure("wrong-shape", error.to_string());
    let layout = Layout::of(&update.tensors).map_err(wrong_shape)?;
    wanted.and_then(|wanted| wanted.require(&layout)).map_err(wrong_shape)?;
    require_finite(&update.tensors).map_err(|refusal| failure("not-finite", refusal.to_string()))?;
    let digest = Layout::model_digest(&update.tensors).map_err(wrong_shape)?;
    Ok((update, digest, layout))
}

/// Why a model was not taken.
enum ReceiveError {
    Refusal(UpdateRefusal),
    Sink(SinkError),
}

impl From<UpdateRefusal> for ReceiveError {
    fn from(refusal: UpdateRefusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<SinkError> for ReceiveError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

impl From<ReceiveError> for ExchangeError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Refusal(refusal) => out_of_place("a model", refusal),
            ReceiveError::Sink(error) => error.into(),
        }
    }
}
