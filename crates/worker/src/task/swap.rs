//! Swapping tables in that were copied anew, and dropping what is left over at the destination.

use millrace_clickhouse::{Destination, Error, classify};
use millrace_model::work::{Outcome, Swap};
use millrace_model::{PipeId, PipeSpec, Problem, Recovery};

use super::{Ending, tables};
use crate::delivery::Patience;
use crate::fence::Fence;

/// Swaps tables in where no stream writes to them.
pub(crate) async fn run(spec: &PipeSpec, pipe: &PipeId, swaps: &[Swap], fence: &Fence) -> Ending {
    let destination = tables::destination(spec)?;
    for swap in swaps {
        fence.require()?;
        swap_in(&destination, pipe, swap).await.map_err(|problem| vec![problem])?;
    }
    Ok(Outcome::Swapped { tables: swaps.iter().map(|swap| swap.id).collect() })
}

/// One swap, trouble that passes waited out for a while.
pub(crate) async fn swap_in(destination: &Destination, pipe: &PipeId, swap: &Swap) -> Result<(), Problem> {
    let mut patience = Patience::new(&swap.source);
    while let Err(error) = destination.swap(swap, pipe).await {
        patience.wait(&error).await?;
    }
    tracing::info!(table.name = %swap.source, target = %swap.target, "the table that was copied anew is in its place");
    Ok(())
}

/// Drops tables that nobody needs. One that somebody else made stays, as its owner would expect.
pub(crate) async fn clean(spec: &PipeSpec, pipe: &PipeId, names: &[String], fence: &Fence) -> Ending {
    let destination = tables::destination(spec)?;
    for name in names {
        fence.require()?;
        match destination.drop_table(&destination.table(name), pipe).await {
            Ok(_) => {}
            Err(Error::NotOurs { .. }) => {
                tracing::info!(table = name, "it was made by somebody else and stays");
            }
            Err(error) => return Err(vec![Problem { recovery: Recovery::Retry, ..classify(&error) }]),
        }
    }
    Ok(Outcome::Cleaned { tables: names.to_vec() })
}

/// Drops the tables of a pipe that goes; what cannot be dropped is told.
pub(crate) async fn tear_down(spec: &PipeSpec, pipe: &PipeId, names: &[String]) -> Vec<Problem> {
    let mut left_behind = Vec::new();
    for name in names {
        let dropped = match tables::destination(spec) {
            Ok(destination) => {
                let dropped = destination.drop_table(&destination.table(name), pipe).await;
                dropped.map(drop).map_err(|error| classify(&error))
            }
            Err(mut problems) => Err(problems.swap_remove(0)),
        };
        if let Err(why) = dropped {
            let message = format!("destination table {name} could not be dropped: {}", why.message);
            left_behind.push(Problem::warning("LEFT_BEHIND", message, "drop it by hand if it is not needed"));
        }
    }
    left_behind
}
