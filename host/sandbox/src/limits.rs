//! How much a module may take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What holds for a sandbox as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLimits {
    /// Bytes of a component's file. Compiling takes time in proportion, and nothing interrupts it.
    pub component_bytes: usize,
    /// Bytes of a guest's call stack.
    pub stack_bytes: usize,
    /// How often a running guest is looked at; a deadline is kept to about this.
    pub tick: Duration,
}

impl Default for SandboxLimits {
    fn default() -> Self {
        Self {
            component_bytes: 64 << 20,
            stack_bytes: 512 << 10,
            tick: Duration::from_millis(10),
        }
    }
}

/// What holds for one call of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallLimits {
    /// Bytes of all linear memories of the guest together.
    pub guest_memory_bytes: usize,
    /// Bytes of all tensors that the host keeps for the call: the model, batches, inputs and outputs of graphs, updates.
    /// Tensors that share their bytes count once.
    pub tensor_memory_bytes: u64,
    /// Handles that the guest may hold at a time.
    pub handles: usize,
    /// Core instances, memories and tables of the component, each.
    pub instances: usize,
    /// Time for the whole call. The time that an aggregator waits for updates does not count.
    pub call: Duration,
    /// Time for one graph.
    pub compute: Duration,
    /// Bytes of log lines.
    pub log_bytes: usize,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            guest_memory_bytes: 256 << 20,
            tensor_memory_bytes: 2 << 30,
            handles: 65_536,
            instances: 16,
            call: Duration::from_secs(300),
            compute: Duration::from_secs(30),
            log_bytes: 64 << 10,
        }
    }
}
