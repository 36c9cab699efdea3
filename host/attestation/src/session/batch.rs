//! One quote for many sessions: where handshakes come in bursts, a node takes one quote over the root of a Merkle tree
//! whose leaves are the sessions' bindings, and sends each peer its path along.
//!
//! Leaf = SHA-512("cloister/batch/leaf/v1" | binding); node = SHA-512("cloister/batch/node/v1" | left | right); places
//! behind the last leaf hold SHA-512("cloister/batch/pad/v1"). The quote's report data is SHA-512("cloister/batch/root/v1" |
//! u32be depth | root), which no binding of one session alone can be: the labels differ. A peer finds its own binding in
//! the root or refuses; of the other sessions it learns hashes.

use sha2::{Digest as _, Sha512};

use crate::encoding::Layout;

/// Most sessions that one quote serves.
pub const MAX_BATCH: usize = 64;
/// Longest path: 64 sessions.
const MAX_DEPTH: usize = 6;

type Hash = [u8; 64];

/// Where a session's binding stands in what its quote commits to. Without siblings the quote is over the binding alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchPath {
    index: u32,
    siblings: Vec<Hash>,
}

/// Why a path is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "place {index} below {depth} hashes, wanted at most {MAX_DEPTH} hashes of 64 bytes and a place among their leaves"
)]
pub struct PathError {
    index: u32,
    depth: usize,
}

impl BatchPath {
    /// Reads a path off the wire.
    ///
    /// # Errors
    /// [`PathError`] if it is too long, a hash is not of 64 bytes, or the place is outside the tree.
    pub fn new<'a>(index: u32, siblings: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<Self, PathError> {
        let depth = siblings.len();
        let wrong = PathError { index, depth };
        if depth > MAX_DEPTH || u64::from(index) >= 1 << depth {
            return Err(wrong);
        }
        let siblings: Result<Vec<Hash>, _> = siblings.map(Hash::try_from).collect();
        Ok(Self {
            index,
            siblings: siblings.map_err(|_| wrong)?,
        })
    }

    /// The place among the leaves, counted from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The hashes beside the way up, lowest first.
    pub fn siblings(&self) -> &[Hash] {
        &self.siblings
    }

    /// Report data of the quote, if the binding stands at this place.
    pub fn report_data(&self, binding: &Hash) -> Hash {
        if self.siblings.is_empty() {
            return *binding;
        }
        let mut hash = leaf(binding);
        for (level, sibling) in self.siblings.iter().enumerate() {
            hash = match (self.index >> level) & 1 {
                0 => node(&hash, sibling),
                _ => node(sibling, &hash),
            };
        }
        root(self.siblings.len(), &hash)
    }
}

/// Sessions that share a quote: its report data, and each session's path, in the order of the bindings. At most
/// [`MAX_BATCH`] bindings; those behind are left out, and have no path.
pub fn batch(bindings: &[Hash]) -> (Hash, Vec<BatchPath>) {
    let bindings = &bindings[..bindings.len().min(MAX_BATCH)];
    if let [only] = bindings {
        return (*only, vec![BatchPath::default()]);
    }
    let mut paths: Vec<BatchPath> = (0..).take(bindings.len()).map(at).collect();
    let mut level: Vec<Hash> = bindings.iter().map(leaf).collect();
    level.resize(bindings.len().next_power_of_two(), hash("cloister/batch/pad/v1", &[]));
    let mut depth = 0;
    while level.len() > 1 {
        for path in &mut paths {
            let place = (path.index >> depth) as usize ^ 1;
            path.siblings.extend(level.get(place));
        }
        level = level
            .chunks(2)
            .map(|pair| node(&pair[0], &pair[pair.len() - 1]))
            .collect();
        depth += 1;
    }
    let top = level.first().copied().unwrap_or([0; 64]);
    (root(depth, &top), paths)
}

fn at(index: u32) -> BatchPath {
    BatchPath {
        index,
        siblings: Vec::new(),
    }
}

fn leaf(binding: &Hash) -> Hash {
    hash("cloister/batch/leaf/v1", &[binding])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash("cloister/batch/node/v1", &[left, right])
}

fn root(depth: usize, top: &Hash) -> Hash {
    let depth = u32::try_from(depth).unwrap_or(u32::MAX).to_be_bytes();
    hash("cloister/batch/root/v1", &[&depth, top])
}

fn hash(label: &str, parts: &[&[u8]]) -> Hash {
    let layout = parts.iter().fold(Layout::new(label), |layout, part| layout.raw(part));
    Sha512::digest(layout.into_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bindings(count: u8) -> Vec<Hash> {
        (0..count).map(|index| [index; 64]).collect()
    }

    #[test]
    fn each_session_finds_itself_and_no_other() {
        for count in [2, 3, 5, 8, 33, 64] {
            let bindings = bindings(count);
            let (report_data, paths) = batch(&bindings);
            assert_eq!(paths.len(), bindings.len());
            for (path, binding) in paths.iter().zip(&bindings) {
                let siblings = path.siblings().iter().map(|hash| &hash[..]);
                assert_eq!(BatchPath::new(path.index(), siblings).as_ref(), Ok(path));
                assert_eq!(path.report_data(binding), report_data, "{count}");
                assert_ne!(path.report_data(&[0xee; 64]), report_data);
            }
            assert_ne!(paths[0].report_data(&bindings[1]), report_data);
            assert_ne!(paths[1].report_data(&bindings[0]), report_data);
        }
    }

    #[test]
    fn one_session_is_its_own_batch() {
        let (report_data, paths) = batch(&bindings(1));
        assert_eq!((report_data, paths[0].report_data(&[0; 64])), ([0; 64], [0; 64]));
    }

    #[test]
    fn more_than_a_batch_is_cut() {
        let (_, paths) = batch(&bindings(100));
        assert_eq!(paths.len(), MAX_BATCH);
    }

    #[test]
    fn an_inner_hash_is_no_session() {
        // A peer whose binding were the hash of two others' would stand one level higher: labels and depth tell them apart.
        let four = bindings(4);
        let (report_data, paths) = batch(&four);
        let inner = node(&leaf(&four[0]), &leaf(&four[1]));
        let shorter = BatchPath {
            index: 0,
            siblings: paths[0].siblings[1..].to_vec(),
        };
        assert_ne!(shorter.report_data(&inner), report_data);
    }

    #[test]
    fn paths_off_the_wire_are_bounded() {
        let hash = [1; 64];
        let path = |index, depth: usize| BatchPath::new(index, vec![&hash[..]; depth].into_iter());
        assert!(path(0, 0).is_ok() && path(63, 6).is_ok());
        assert!(path(1, 0).is_err() && path(64, 6).is_err() && path(0, 7).is_err());
        assert!(BatchPath::new(0, [&hash[..63]].into_iter()).is_err());
    }
}
