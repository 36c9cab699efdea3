//! What is loaded into a runner, and again into the next one.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

use cloister_data::Format;
use cloister_policy::DatasetSpec;

use super::Runner;
use super::replies::skipped;
use crate::blob::{SealedBlob, SharedBlob};
use crate::error::RunnerError;
use crate::message::{Reply, Request};
use crate::requests::{DatasetInfo, GraphInfo, ModuleInfo};
use crate::spec;
use crate::tensors::SharedTensorsError;

/// Something that was loaded, kept to load it again into a new process.
#[derive(Debug)]
pub(super) enum Load {
    Module {
        name: String,
        file: SealedBlob,
    },
    Graph {
        name: String,
        file: SealedBlob,
    },
    Dataset {
        name: String,
        file_name: String,
        file: File,
        format: Format,
        spec: DatasetSpec,
        salt: [u8; 32],
    },
}

impl Load {
    /// What it replaces when it is loaded: the same kind under the same name.
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Module { name: one, .. }, Self::Module { name: two, .. })
            | (Self::Graph { name: one, .. }, Self::Graph { name: two, .. })
            | (Self::Dataset { name: one, .. }, Self::Dataset { name: two, .. }) => one == two,
            _ => false,
        }
    }
}

impl Runner {
    /// Loads a component under its name in the policy. Whether the policy names the digest is the caller's to check.
    ///
    /// # Errors
    /// The component is refused, or the runner dies of it.
    pub fn load_module(&mut self, name: &str, file: &[u8]) -> Result<ModuleInfo, RunnerError> {
        let load = Load::Module {
            name: name.to_owned(),
            file: self.share(file)?,
        };
        match self.load(load)? {
            Reply::ModuleLoaded { digest, world } => Ok(ModuleInfo {
                digest,
                world: world.chars().take(64).collect(),
            }),
            other => Err(self.unexpected("loading a module", &other)),
        }
    }

    /// Loads a graph under its name in the policy and compiles it. Whether the policy names the digest is the caller's to check.
    ///
    /// # Errors
    /// The graph is refused, or the runner dies of it.
    pub fn load_graph(&mut self, name: &str, file: &[u8]) -> Result<GraphInfo, RunnerError> {
        let load = Load::Graph {
            name: name.to_owned(),
            file: self.share(file)?,
        };
        match self.load(load)? {
            Reply::GraphLoaded { digest, source_digest } => Ok(GraphInfo { digest, source_digest }),
            other => Err(self.unexpected("loading a graph", &other)),
        }
    }

    /// Hands over an open file of data; the runner reads it by the description. Whether the policy names the commitment is
    /// the caller's to check. `file_name` stands in errors.
    ///
    /// # Errors
    /// The file is refused, or the runner dies of it.
    pub fn open_dataset(
        &mut self,
        file_name: &str,
        file: File,
        format: Format,
        spec: &DatasetSpec,
        salt: &[u8; 32],
    ) -> Result<DatasetInfo, RunnerError> {
        let (name, file_name) = (spec.name.clone(), file_name.to_owned());
        let load = Load::Dataset {
            name,
            file_name,
            file,
            format,
            spec: spec.clone(),
            salt: *salt,
        };
        match self.load(load)? {
            Reply::DatasetOpened {
                rows,
                commitment,
                memory_bytes,
                skipped: left_out,
                damaged,
            } => Ok(DatasetInfo {
                rows,
                commitment,
                memory_bytes,
                skipped: skipped(left_out, damaged),
            }),
            other => Err(self.unexpected("opening a dataset", &other)),
        }
    }

    fn share(&self, file: &[u8]) -> Result<SealedBlob, RunnerError> {
        if file.len() as u64 > self.limits().file_bytes {
            let problem = format!(
                "a file of {} bytes, at most {} are allowed",
                file.len(),
                self.limits().file_bytes
            );
            return Err(RunnerError::Request(problem));
        }
        Ok(SharedBlob::copy_of(file).map_err(SharedTensorsError::from)?)
    }

    fn load(&mut self, load: Load) -> Result<Reply, RunnerError> {
        let reply = self.send_load(&load)?;
        self.loaded.retain(|loaded| !loaded.same(&load));
        self.loaded.push(load);
        Ok(reply)
    }

    pub(super) fn send_load(&mut self, load: &Load) -> Result<Reply, RunnerError> {
        let (during, request, beside) = match load {
            Load::Module { name, file } => (
                "loading a module",
                Request::LoadModule { name: name.clone() },
                file.as_fd(),
            ),
            Load::Graph { name, file } => (
                "loading a graph",
                Request::LoadGraph { name: name.clone() },
                file.as_fd(),
            ),
            Load::Dataset {
                name,
                file_name,
                file,
                format,
                spec,
                salt,
            } => {
                let request = Request::OpenDataset {
                    name: name.clone(),
                    file: file_name.clone(),
                    format: format.to_string(),
                    spec: spec::to_toml(spec),
                    salt: *salt,
                };
                ("opening a dataset", request, file.as_fd())
            }
        };
        let deadline = Instant::now() + self.limits().load;
        Ok(self.ask(during, &request, &[beside], deadline)?.message)
    }
}
