//! Cutting a table into ranges of pages that can be copied independently.

use millrace_model::PageRange;

/// More partitions than this are not made of one table; they get larger instead.
const MAX_PARTITIONS: u64 = 50_000;

/// Fewer pages than this are not worth a query of their own (1 MiB).
const MIN_PAGES: u64 = 128;

/// Where there are more than so many partitions, they are made larger until each has [`AMPLE_PAGES`]: a partition is at least one insert, and an insert of fewer bytes costs the
/// destination as much, and a merge sooner.
const AMPLE: u64 = 16;
const AMPLE_PAGES: u64 = 1_536;

/// Cuts a table of `pages` pages of 8 KiB, believed to hold `estimated_rows`, into ranges of about `rows_per_partition` rows each,
/// or of more where rows are short and ranges would be many.
///
/// The ranges follow one another without gap from page 0, differ by at most one page, and the last is open-ended: rows that came after the
/// table was measured are not missed. Pages, not rows, are what is divided: a bloated table has even reads. Where the row count is unknown (0), 100 rows a page are
/// assumed. A table without pages (empty, or partitioned and so without storage of its own) is one range.
pub fn cut(pages: u32, estimated_rows: u64, rows_per_partition: u32) -> Vec<PageRange> {
    let total = u64::from(pages);
    let rows = if estimated_rows == 0 { total.saturating_mul(100) } else { estimated_rows };
    let by_rows = rows.div_ceil(u64::from(rows_per_partition.max(1)));
    let count = by_rows.min((total / AMPLE_PAGES).max(AMPLE)).min(total / MIN_PAGES).clamp(1, MAX_PARTITIONS);
    let boundary = |index: u64| u32::try_from(total * index / count).unwrap_or(u32::MAX);
    (0..count)
        .map(|index| PageRange {
            first: boundary(index),
            end: (index + 1 < count).then(|| boundary(index + 1)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_cover_every_page_once_and_are_even(pages: u32, rows in 0..u64::MAX / 2, per_partition in 1u32..) {
            let ranges = cut(pages, rows, per_partition);
            prop_assert_eq!(ranges[0].first, 0);
            prop_assert_eq!(ranges.last().unwrap().end, None);
            for pair in ranges.windows(2) {
                prop_assert_eq!(pair[0].end, Some(pair[1].first));
            }
            let sizes: Vec<u32> = ranges.iter().map(|range| range.end.unwrap_or(pages) - range.first).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{} to {} pages", least, most);
            prop_assert!(ranges.len() as u64 <= MAX_PARTITIONS);
        }
    }

    #[test]
    fn an_empty_table_is_one_range() {
        assert_eq!(cut(0, 0, 100_000), [PageRange::ALL]);
    }

    #[test]
    fn a_table_is_cut_by_its_rows() {
        assert_eq!(cut(80_000, 5_000_000, 100_000).len(), 50);
        assert_eq!(cut(80_000, 5_000_000, 1_000_000).len(), 5);
    }

    #[test]
    fn many_ranges_of_short_rows_are_made_fewer() {
        let rows_of = |pages, rows| rows / cut(pages, rows, 100_000).len() as u64;
        assert_eq!(rows_of(26_000, 4_000_000), 250_000);
        assert_eq!(cut(260_000, 40_000_000, 100_000).len(), 169);
        assert_eq!(
            cut(6_000, 1_200_000, 100_000).len(),
            12,
            "a few are left as they are, for all to have some"
        );
    }

    #[test]
    fn a_table_that_was_never_analysed_is_cut_all_the_same() {
        assert_eq!(cut(100_000, 0, 1_000_000).len(), 10);
    }
}
