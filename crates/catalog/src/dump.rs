//! The way from one catalog to another: everything as lines of JSON.
//!
//! The first line says what it is and in which form; each line after it is a pipe with all that belongs to it. The form is that of the records, which later releases read
//! (`millrace-lifecycle`), so that a dump is as lasting as a catalog. It holds passwords as the catalog does.

use std::io::{BufRead, Write};
use std::time::Duration;

use millrace_lifecycle::{
    AssignmentRecord, EventRecord, PartitionRecord, PipeAggregate, PipeChanges, PipeRecord, TableRecord,
};
use millrace_model::{Epoch, TableId, Term};
use serde::{Deserialize, Serialize};

use crate::{Candidate, Catalog, CatalogError, Standing};

/// The form of a dump. A release reads its own and all before it.
const FORMAT: u32 = 1;

/// Events that are read at a time.
const EVENTS: usize = 1_000;

/// Pipes that are stored at a time.
const BATCH: usize = 100;

/// For how long an import has the catalog to itself.
const LEASE: Duration = Duration::from_secs(600);

/// The head of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Always 1.
    pub millrace_catalog: u32,
    /// The pipes that follow.
    pub pipes: usize,
    /// The greatest epoch that was ever given out.
    pub last_epoch: Epoch,
    /// The last term that began.
    pub last_term: Term,
}

#[derive(Serialize, Deserialize)]
struct Line {
    pipe: PipeRecord,
    tables: Vec<TableRecord>,
    partitions: Vec<(TableId, PartitionRecord)>,
    assignments: Vec<AssignmentRecord>,
    events: Vec<EventRecord>,
}

/// Why a catalog was not moved.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The dump cannot be read or written.
    #[error("the dump cannot be read or written")]
    File(#[from] std::io::Error),
    /// A line is not what a dump holds.
    #[error("line {line} is not what a dump of a catalog holds")]
    Line {
        /// From 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Made by a later release.
    #[error(
        "the dump has form {found}, this release reads forms up to {FORMAT}; use the release that made it, or a later one"
    )]
    Newer {
        /// Its form.
        found: u32,
    },
    /// It ends too soon, or too late.
    #[error("the dump says that it holds {said} pipes, but holds {found}; it is not whole")]
    Incomplete {
        /// As its head says.
        said: usize,
        /// As counted.
        found: usize,
    },
    /// There is something in the catalog.
    #[error("the catalog holds {pipes} pipes; only an empty one can be filled from a dump")]
    NotEmpty {
        /// So many.
        pipes: usize,
    },
    /// A coordinator runs on the catalog.
    #[error("the coordinator at {address} leads on the catalog; stop it first")]
    InUse {
        /// Where it is reached.
        address: String,
    },
}

/// Writes everything that the catalog holds. Of a catalog that a coordinator works on it is a state between two of its decisions for each pipe, good to look at; one that is to be
/// moved must be at rest.
///
/// # Errors
/// The catalog cannot be read, or the dump not be written.
pub async fn export(catalog: &impl Catalog, out: &mut impl Write) -> Result<Dump, DumpError> {
    let stored = catalog.load().await?;
    let head = Dump {
        millrace_catalog: FORMAT,
        pipes: stored.pipes.len(),
        last_epoch: stored.last_epoch,
        last_term: stored.last_term,
    };
    write_line(out, &head)?;
    for pipe in &stored.pipes {
        write_line(out, &line(catalog, pipe).await?)?;
    }
    out.flush()?;
    Ok(head)
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> Result<(), DumpError> {
    serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}

async fn line(catalog: &impl Catalog, pipe: &PipeAggregate) -> Result<Line, CatalogError> {
    let mut events: Vec<EventRecord> = Vec::new();
    loop {
        let after = events.last().map_or(0, |event| event.id);
        let page = catalog.events(&pipe.pipe().id, after, EVENTS).await?;
        let last = page.len() < EVENTS;
        events.extend(page);
        if last {
            break;
        }
    }
    Ok(Line {
        pipe: pipe.pipe().clone(),
        tables: pipe.tables().map(|table| table.record.clone()).collect(),
        partitions: pipe
            .tables()
            .flat_map(|table| table.partitions.iter().map(|partition| (table.record.id, partition.clone())))
            .collect(),
        assignments: pipe.assignments().cloned().collect(),
        events,
    })
}

/// Fills an empty catalog that no coordinator works on. What is read is checked before anything is stored; a failure of the catalog in the middle leaves a part of it there, which the next try refuses.
///
/// # Errors
/// The dump is not whole or of a later release, the catalog is not empty or in use, or it fails.
pub async fn import(catalog: &impl Catalog, dump: impl BufRead) -> Result<Dump, DumpError> {
    let (head, pipes) = read(dump)?;
    let id = "import".to_owned();
    let importer = Candidate { id, address: "an import".to_owned() };
    let term = match catalog.campaign(&importer, LEASE).await? {
        Standing::Leads(term) => term,
        Standing::Follows(leader) => return Err(DumpError::InUse { address: leader.candidate.address }),
    };
    let filled = fill(catalog, term, &head, pipes).await;
    catalog.resign(term).await?;
    filled?;
    catalog.outdo(head.last_term).await?;
    Ok(head)
}

fn read(dump: impl BufRead) -> Result<(Dump, Vec<Line>), DumpError> {
    let mut lines = dump.lines().enumerate();
    let parse = |(index, line): (usize, std::io::Result<String>)| Ok::<_, DumpError>((index + 1, line?));
    let (number, first) = lines.next().map(parse).transpose()?.unwrap_or((1, String::new()));
    let wrong = |line| move |source| DumpError::Line { line, source };
    let head: Dump = serde_json::from_str(&first).map_err(wrong(number))?;
    if head.millrace_catalog > FORMAT {
        return Err(DumpError::Newer { found: head.millrace_catalog });
    }
    let mut pipes = Vec::new();
    for line in lines {
        let (number, line) = parse(line)?;
        pipes.push(serde_json::from_str::<Line>(&line).map_err(wrong(number))?);
    }
    if pipes.len() != head.pipes {
        return Err(DumpError::Incomplete { said: head.pipes, found: pipes.len() });
    }
    Ok((head, pipes))
}

async fn fill(catalog: &impl Catalog, term: Term, head: &Dump, pipes: Vec<Line>) -> Result<(), DumpError> {
    let standing = catalog.load().await?.pipes.len();
    if standing > 0 {
        return Err(DumpError::NotEmpty { pipes: standing });
    }
    let mut batch = Vec::new();
    for line in pipes {
        let id = line.pipe.id.clone();
        let changes = PipeChanges {
            expected_version: 0,
            pipe: Some(line.pipe),
            tables: line.tables,
            partitions: line.partitions,
            assignments: line.assignments,
            events: line.events,
            ..PipeChanges::default()
        };
        batch.push((id, changes));
        if batch.len() == BATCH {
            catalog.commit(term, std::mem::take(&mut batch), head.last_epoch).await?;
        }
    }
    // Also where there is none: the last epoch is to be stored.
    Ok(catalog.commit(term, batch, head.last_epoch).await?)
}
