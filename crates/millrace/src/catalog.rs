//! `millrace catalog`: looking after a catalog that no coordinator works on.

use std::fs::OpenOptions;
use std::io::{BufReader, BufWriter, Write, stdout};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use millrace_catalog::{AnyCatalog, Location};

#[derive(Subcommand)]
pub(crate) enum CatalogCommand {
    /// Bring a catalog to the schema of this release; coordinators do so too when they start.
    Migrate(Where),
    /// Write everything that a catalog holds, passwords included, as lines of JSON. Stop the coordinators first.
    Export {
        #[command(flatten)]
        place: Where,
        /// The file to write, readable by its owner only [default: standard output].
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Fill an empty catalog with what was exported from another, of either kind.
    Import {
        #[command(flatten)]
        place: Where,
        /// What was exported.
        file: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Where {
    /// postgresql://user:password@host:port/database, or the path of a file such as millrace-data/catalog.sqlite.
    #[arg(long, env = "MILLRACE_CATALOG", hide_env_values = true)]
    catalog: String,
}

impl Where {
    async fn open(&self) -> anyhow::Result<(AnyCatalog, Location)> {
        let location = Location::new(&self.catalog);
        Ok((location.open().await?, location))
    }

    /// As [`Where::open`]; a file that is not there is not made.
    async fn open_existing(&self) -> anyhow::Result<(AnyCatalog, Location)> {
        if let Location::File(path) = Location::new(&self.catalog)
            && !path.exists()
        {
            bail!("there is no catalog {}; name the file, or the URL of a database", path.display());
        }
        self.open().await
    }
}

/// Runs one command.
pub(crate) async fn run(command: CatalogCommand) -> anyhow::Result<()> {
    match command {
        CatalogCommand::Migrate(place) => {
            let (_, location) = place.open().await?;
            println!("catalog {location} has the schema of this release");
        }
        CatalogCommand::Export { place, output } => {
            let (catalog, location) = place.open_existing().await?;
            let mut out: Box<dyn Write> = match &output {
                Some(path) => Box::new(BufWriter::new(private(path)?)),
                None => Box::new(stdout().lock()),
            };
            let dump = millrace_catalog::export(&catalog, &mut out)
                .await
                .with_context(|| format!("cannot export the catalog {location}"))?;
            eprintln!("{} pipes of {location} written; the dump holds their passwords", dump.pipes);
        }
        CatalogCommand::Import { place, file } => {
            let opened =
                std::fs::File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let (catalog, location) = place.open().await?;
            let dump = millrace_catalog::import(&catalog, BufReader::new(opened))
                .await
                .with_context(|| format!("cannot import {} into {location}", file.display()))?;
            println!("{} pipes are in {location} now", dump.pipes);
        }
    }
    Ok(())
}

fn private(path: &Path) -> anyhow::Result<std::fs::File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.with_context(|| format!("cannot make {}; an existing file is not overwritten", path.display()))
}
