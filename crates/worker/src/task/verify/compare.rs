//! What can be told from rows of both sides without asking anybody: pure.
//!
//! Rows are compared as ClickHouse holds them: their values in `RowBinary`. A row's identity is its sorting key.

use std::collections::HashMap;
use std::hash::Hasher as _;

use millrace_model::work::DifferenceKind;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// 128 bits that stand for some bytes: two different ones of even a trillion agree less often than memory fails.
pub(super) fn digest(bytes: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

/// Sums over the rows of both sides, by buckets of their keys: where the sums agree the rows do.
#[derive(Debug)]
pub(super) struct Tally {
    /// Digests of the source's rows, less those of the destination's.
    sums: Vec<u128>,
    pub(super) source_rows: u64,
    pub(super) destination_rows: u64,
}

impl Tally {
    /// Bytes of memory that a bucket takes.
    pub(super) const BUCKET_BYTES: u64 = 16;

    pub(super) fn new(buckets: usize) -> Self {
        Self { sums: vec![0; buckets.max(1)], source_rows: 0, destination_rows: 0 }
    }

    /// The bucket of a key.
    pub(super) fn bucket(&self, key: u128) -> usize {
        (key % self.sums.len() as u128) as usize
    }

    pub(super) fn source(&mut self, key: u128, row: u128) {
        let bucket = self.bucket(key);
        self.sums[bucket] = self.sums[bucket].wrapping_add(row);
        self.source_rows += 1;
    }

    pub(super) fn destination(&mut self, key: u128, row: u128) {
        let bucket = self.bucket(key);
        self.sums[bucket] = self.sums[bucket].wrapping_sub(row);
        self.destination_rows += 1;
    }

    /// Buckets whose sums do not agree.
    pub(super) fn differing(&self) -> Vec<usize> {
        self.sums.iter().enumerate().filter(|(_, sum)| **sum != 0).map(|(bucket, _)| bucket).collect()
    }
}

/// Rows of some buckets, until both sides are read.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    rows: HashMap<u128, Suspect>,
}

#[derive(Debug)]
struct Suspect {
    key: Vec<u8>,
    source: Option<u128>,
    destination: Option<u128>,
}

impl Suspects {
    pub(super) fn source(&mut self, digest: u128, key: &[u8], row: u128) {
        self.of(digest, key).source = Some(row);
    }

    /// Takes in a row of the destination, which is read last: one that agrees is forgotten at once.
    pub(super) fn destination(&mut self, digest: u128, key: &[u8], row: u128) {
        if self.rows.get(&digest).is_some_and(|suspect| suspect.source == Some(row)) {
            self.rows.remove(&digest);
        } else {
            self.of(digest, key).destination = Some(row);
        }
    }

    fn of(&mut self, digest: u128, key: &[u8]) -> &mut Suspect {
        let new = || Suspect { key: key.to_vec(), source: None, destination: None };
        self.rows.entry(digest).or_insert_with(new)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Keys, by their digest, whose rows do not agree.
    pub(super) fn keys(self) -> HashMap<u128, Vec<u8>> {
        let differ = self.rows.into_iter().filter(|(_, suspect)| suspect.source != suspect.destination);
        differ.map(|(digest, suspect)| (digest, suspect.key)).collect()
    }
}

/// A row at the source, by the digests of its values in the order of the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceRow {
    pub(super) columns: Vec<u128>,
}

/// The newest version of a row at the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DestinationRow {
    pub(super) version: u64,
    pub(super) is_deleted: bool,
    pub(super) columns: Vec<u128>,
}

/// What can be said of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Both sides agree.
    Equal,
    /// They do not; columns by their place.
    Differs(DifferenceKind, Vec<usize>),
    /// The row changed meanwhile.
    Open,
}

/// Judges one row by three looks: at the destination, then at the source in a snapshot, then at the destination again once it has everything that the snapshot sees.
///
/// Where the destination shows the same version both times, that version was committed before the snapshot was taken, and nothing newer that the snapshot sees is missing at the
/// second look: so the snapshot shows just this version, and any difference is one. Where the destination changed in between, nothing can be said.
pub(super) fn judge(
    before: Option<&DestinationRow>,
    source: Option<&SourceRow>,
    after: Option<&DestinationRow>,
) -> Verdict {
    if before != after {
        return Verdict::Open;
    }
    let visible = after.filter(|row| !row.is_deleted);
    match (source, visible) {
        (None, None) => Verdict::Equal,
        (Some(_), None) => Verdict::Differs(DifferenceKind::Missing, Vec::new()),
        (None, Some(_)) => Verdict::Differs(DifferenceKind::Extra, Vec::new()),
        (Some(source), Some(destination)) => {
            let pairs = source.columns.iter().zip(&destination.columns);
            let altered: Vec<usize> =
                pairs.enumerate().filter(|(_, (left, right))| left != right).map(|(at, _)| at).collect();
            if altered.is_empty() {
                Verdict::Equal
            } else {
                Verdict::Differs(DifferenceKind::Altered, altered)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(source: &[(&str, &str)], destination: &[(&str, &str)], buckets: usize) -> Vec<usize> {
        let mut tally = Tally::new(buckets);
        for (key, row) in source {
            tally.source(digest(key.as_bytes()), digest(row.as_bytes()));
        }
        for (key, row) in destination {
            tally.destination(digest(key.as_bytes()), digest(row.as_bytes()));
        }
        tally.differing()
    }

    #[test]
    fn any_single_difference_shows_in_its_bucket_and_order_does_not_matter() {
        let rows: Vec<(String, String)> = (0..500).map(|n| (n.to_string(), format!("row {n}"))).collect();
        let rows: Vec<(&str, &str)> = rows.iter().map(|(key, row)| (key.as_str(), row.as_str())).collect();
        let mut reversed = rows.clone();
        reversed.reverse();
        assert_eq!(tally(&rows, &reversed, 64), [0; 0]);
        for at in 0..rows.len() {
            let mut altered = rows.clone();
            altered[at].1 = "another";
            assert_eq!(tally(&rows, &altered, 64).len(), 1);
            let mut missing = rows.clone();
            missing.remove(at);
            assert_eq!(tally(&rows, &missing, 64).len(), 1);
            assert_eq!(tally(&missing, &rows, 64).len(), 1);
        }
        // Two rows that have each other's values.
        let swapped = [("a", "1"), ("b", "2")];
        assert_eq!(tally(&swapped, &[("a", "2"), ("b", "1")], 1 << 20).len(), 2);
    }

    #[test]
    fn suspects_are_the_rows_that_do_not_agree() {
        let mut suspects = Suspects::default();
        for (key, row) in [("same", 1), ("altered", 2), ("missing", 3)] {
            suspects.source(digest(key.as_bytes()), key.as_bytes(), row);
        }
        for (key, row) in [("same", 1), ("altered", 9), ("extra", 4)] {
            suspects.destination(digest(key.as_bytes()), key.as_bytes(), row);
        }
        let mut keys: Vec<String> =
            suspects.keys().into_values().map(|key| String::from_utf8(key).unwrap()).collect();
        keys.sort();
        assert_eq!(keys, ["altered", "extra", "missing"]);
    }

    #[test]
    fn a_row_is_judged_only_where_it_stood_still() {
        let source = |value: u128| SourceRow { columns: vec![1, value] };
        let shown =
            |version, value: u128| DestinationRow { version, is_deleted: false, columns: vec![1, value] };
        let gone = |version| DestinationRow { version, is_deleted: true, columns: vec![1, 0] };
        let differs = |kind, columns: &[usize]| Verdict::Differs(kind, columns.to_vec());
        use DifferenceKind::{Altered, Extra, Missing};
        assert_eq!(judge(Some(&shown(5, 2)), Some(&source(2)), Some(&shown(5, 2))), Verdict::Equal);
        assert_eq!(judge(Some(&shown(5, 3)), Some(&source(2)), Some(&shown(5, 3))), differs(Altered, &[1]));
        assert_eq!(judge(Some(&shown(5, 3)), Some(&source(2)), Some(&shown(6, 2))), Verdict::Open);
        assert_eq!(judge(Some(&shown(5, 3)), None, Some(&shown(5, 3))), differs(Extra, &[]));
        assert_eq!(judge(Some(&shown(5, 3)), None, Some(&gone(6))), Verdict::Open);
        assert_eq!(judge(Some(&gone(6)), None, Some(&gone(6))), Verdict::Equal);
        assert_eq!(judge(Some(&gone(6)), Some(&source(2)), Some(&gone(6))), differs(Missing, &[]));
        assert_eq!(judge(None, Some(&source(2)), None), differs(Missing, &[]));
        assert_eq!(judge(None, Some(&source(2)), Some(&shown(7, 2))), Verdict::Open);
        assert_eq!(judge(None, None, None), Verdict::Equal);
    }
}
