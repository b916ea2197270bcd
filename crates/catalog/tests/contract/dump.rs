//! Moving a catalog from one place to another.

use millrace_catalog::{Catalog, DumpError, SqliteCatalog, Standing, export, import};
use millrace_model::spec::ReplicationMode::{Cdc, Snapshot};
use millrace_model::{Epoch, Term};

use crate::story::{Story, assert_same, candidate};
use crate::suite::Place;

async fn dumped(catalog: &impl Catalog) -> Vec<u8> {
    let mut dump = Vec::new();
    export(catalog, &mut dump).await.unwrap();
    dump
}

/// A catalog with pipes in different states, in its seventh term.
pub(crate) async fn fill(catalog: &impl Catalog) {
    for number in 1..=3 {
        Story::copying(catalog, number, if number == 2 { Snapshot } else { Cdc }).await;
    }
    catalog.outdo(Term(6)).await.unwrap();
    // As after a clean end of its coordinator.
    if let Standing::Leads(term) =
        catalog.campaign(&candidate("coordinator"), std::time::Duration::ZERO).await.unwrap()
    {
        catalog.resign(term).await.unwrap();
    }
}

pub(crate) async fn assert_moved(from: &impl Catalog, to: &impl Catalog) {
    let (left, right) = (from.load().await.unwrap(), to.load().await.unwrap());
    assert_eq!(left.last_epoch, right.last_epoch);
    assert!(left.last_epoch > Epoch(0));
    assert!(right.last_term >= left.last_term, "workers would turn away");
    assert_eq!(left.pipes.len(), right.pipes.len());
    for (left, right) in left.pipes.iter().zip(&right.pipes) {
        assert_same(left, right);
        let id = &left.pipe().id;
        let history = from.events(id, 0, 1_000).await.unwrap();
        assert!(!history.is_empty());
        assert_eq!(history, to.events(id, 0, 1_000).await.unwrap());
    }
}

/// Moves everything there and back.
pub(crate) async fn there_and_back(from: &impl Place, to: &impl Place, back: &impl Place) {
    let (from, to, back) = (from.open().await, to.open().await, back.open().await);
    fill(&from).await;
    import(&to, dumped(&from).await.as_slice()).await.unwrap();
    assert_moved(&from, &to).await;
    import(&back, dumped(&to).await.as_slice()).await.unwrap();
    assert_moved(&from, &back).await;
}

#[tokio::test]
async fn a_dump_goes_whole_into_an_empty_catalog_at_rest_or_not_at_all() {
    let from = SqliteCatalog::open_in_memory().unwrap();
    fill(&from).await;
    let dump = dumped(&from).await;
    let to = SqliteCatalog::open_in_memory().unwrap();
    let lines: Vec<&[u8]> = dump.split_inclusive(|byte| *byte == b'\n').collect();
    let cut = lines[..lines.len() - 1].concat();
    assert!(matches!(import(&to, &cut[..]).await, Err(DumpError::Incomplete { said: 3, found: 2 })));
    let mut torn = dump.clone();
    torn.truncate(dump.len() - 20);
    assert!(matches!(import(&to, &torn[..]).await, Err(DumpError::Line { line: 4, .. })));
    assert!(matches!(import(&to, &b"{}"[..]).await, Err(DumpError::Line { line: 1, .. })));
    let newer = String::from_utf8(dump.clone()).unwrap().replacen(
        "\"millrace_catalog\":1",
        "\"millrace_catalog\":9",
        1,
    );
    assert!(matches!(import(&to, newer.as_bytes()).await, Err(DumpError::Newer { found: 9 })));
    assert!(to.load().await.unwrap().pipes.is_empty());

    let hour = std::time::Duration::from_secs(3600);
    let Standing::Leads(term) = to.campaign(&candidate("running"), hour).await.unwrap() else { panic!() };
    assert!(matches!(import(&to, &dump[..]).await, Err(DumpError::InUse { .. })));
    to.resign(term).await.unwrap();
    import(&to, &dump[..]).await.unwrap();
    assert!(matches!(import(&to, &dump[..]).await, Err(DumpError::NotEmpty { pipes: 3 })));
    assert_moved(&from, &to).await;
}
