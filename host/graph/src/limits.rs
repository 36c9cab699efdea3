//! How large a model may be. Every count in a file is checked against these before anything is allocated for it.

/// Limits on an ONNX file and on the values of its graph.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Size of the file, in bytes.
    pub bytes: usize,
    /// Nodes of the graph.
    pub nodes: usize,
    /// Initializers (weights and constants).
    pub initializers: usize,
    /// Inputs, and as many outputs.
    pub ports: usize,
    /// Inputs or outputs of one node.
    pub operands: usize,
    /// Attributes of one node.
    pub attributes: usize,
    /// Numbers in one attribute, or elements of a constant that is computed while reading.
    pub attribute_values: usize,
    /// Dimensions of a value.
    pub rank: usize,
    /// Length of a name, in bytes.
    pub name_bytes: usize,
    /// Elements of one value.
    pub elements: usize,
    /// Entries of the metadata; each key and value has `metadata_bytes` at most.
    pub metadata: usize,
    /// Length of one metadata key or value, in bytes.
    pub metadata_bytes: usize,
}

impl Default for Limits {
    /// Enough for a ResNet-152 or a BERT-large training graph, and little more.
    fn default() -> Self {
        Self {
            bytes: 2 << 30,
            nodes: 1 << 17,
            initializers: 1 << 14,
            ports: 1 << 14,
            operands: 1 << 10,
            attributes: 32,
            attribute_values: 1 << 16,
            rank: 8,
            name_bytes: 512,
            elements: 1 << 32,
            metadata: 256,
            metadata_bytes: 4 << 20,
        }
    }
}
