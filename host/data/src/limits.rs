//! How much a dataset may take.

/// Limits on what is read from a file; a file beyond one is refused before the memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataLimits {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Rows; at most `u32::MAX`, since an order is a list of `u32`.
    pub rows: u64,
    /// Columns of the file, wanted or not.
    pub columns: usize,
    /// Bytes of one line of a CSV file, without its line end.
    pub line_bytes: usize,
    /// Bytes of the dataset in memory: rows times the bytes of a row over all inputs.
    pub memory_bytes: u64,
}

impl Default for DataLimits {
    /// 16 GiB file, 100 million rows, 65,536 columns, 1 MiB a line, 4 GiB in memory.
    fn default() -> Self {
        Self {
            file_bytes: 16 << 30,
            rows: 100_000_000,
            columns: 65_536,
            line_bytes: 1 << 20,
            memory_bytes: 4 << 30,
        }
    }
}
