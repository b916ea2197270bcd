//! `millrace pipe delete`

use millrace_api::ApiError;
use millrace_api::proto::pipe::v1 as wire;

use crate::Session;
use crate::arguments::DeleteOptions;
use crate::console::Console;
use crate::failure::Failure;
use crate::view::{self, problem_text};
use crate::watcher::Watcher;
use crate::wording::{duration, severity_word};

/// Deletes a pipe, waits until it is gone and tells what stayed behind.
pub(crate) async fn delete(
    options: &DeleteOptions,
    session: &Session<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let DeleteOptions { name, drop_tables, timeout } = options;
    let what = format!("pipe '{name}' was not deleted");
    let mut clients = session.connect(&what).await?;
    let refused = |error: ApiError| Failure::refused(&what, error);
    // Watched from before on, so that nothing that happens on the way is missed.
    let mut watcher = Watcher::new(clients.clone(), name);
    watcher.next().await.map_err(refused)?;
    let request = wire::DeleteRequest { name: name.clone(), drop_tables: *drop_tables };
    let response = clients.pipes.delete(request).await.map_err(|status| refused(status.into()))?.into_inner();
    let mut left_behind = Vec::new();
    let mut last = response.pipe.clone().unwrap_or_default();
    let gone = async {
        while let Some(update) = watcher.next().await? {
            let problems = update.events.into_iter().filter_map(|event| event.problem);
            left_behind.extend(problems.filter(|problem| problem.code == "LEFT_BEHIND"));
            last = update.pipe.unwrap_or(last.clone());
        }
        Ok::<(), ApiError>(())
    };
    match tokio::time::timeout(*timeout, gone).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Err(Failure::refused(
                format!("deletion of pipe '{name}' was not seen to its end"),
                error,
            ));
        }
        Err(_) => {
            let status = last.status.unwrap_or_default();
            let why = match status.problem {
                Some(problem) => problem.message,
                None if status.next.is_empty() => "it is still there".to_owned(),
                None => format!("it is still there; next: {}", status.next),
            };
            let what = format!("pipe '{name}' was not gone within {}", duration(*timeout));
            let remedy = format!("deletion goes on; follow it with 'millrace pipe watch {name}'");
            return Err(Failure::new(what, why, remedy));
        }
    }
    for problem in &left_behind {
        console.complain(&problem_text(severity_word(problem.severity()), problem));
    }
    view::print(console, session.globals.output, &response, |_, _| {
        match (drop_tables, left_behind.is_empty()) {
            (false, _) => format!("pipe {name} deleted; its destination tables stay"),
            (true, true) => format!("pipe {name} and its destination tables deleted"),
            (true, false) => format!("pipe {name} and its destination tables deleted, but see what failed"),
        }
    })
}
