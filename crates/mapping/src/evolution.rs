//! What a changed table at the source asks of its destination table: pure decisions, without a guess.
//!
//! The change stream says what a table's columns are called and of which types they are, not which of them is which: a
//! rename and a drop with an addition look the same. The source's catalog knows, by the number that a column keeps for as
//! long as it exists. So three views meet here: what was recorded, what the stream says, and what the source's catalog says now. Where they do not
//! fit together (the catalog may be ahead of the stream) or where a change would need values that nobody sends, the answer is why the table cannot
//! follow.
//!
//! What no view shows: an expression behind `ALTER COLUMN ... TYPE ... USING`, which may have changed every value.

use millrace_model::spec::SchemaChangePolicy;
use millrace_model::{PgType, SourceColumn, TableDefinition};

/// A column as the change stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamColumn {
    /// Its name.
    pub name: String,
    /// `pg_type.oid`
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`
    pub type_modifier: i32,
}

/// A column as the source's catalog has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentColumn {
    /// The column.
    pub column: SourceColumn,
    /// What rows show that are older than the column.
    pub backfill: Backfill,
}

/// What rows show in a column that was added after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backfill {
    /// NULL.
    Null,
    /// One value, in its text form (`pg_attribute.attmissingval`).
    Value(String),
    /// Values that were computed row by row, which the change stream does not tell.
    Unknown,
}

/// One change of the destination's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alteration {
    /// A new column, of the type that it is planned with.
    Add {
        /// Its name.
        name: String,
        /// What older rows show; `None` is the type's default, NULL where it can be.
        backfill: Option<String>,
    },
    /// A column goes.
    Drop {
        /// Its name.
        name: String,
    },
    /// A column is called otherwise.
    Rename {
        /// Before.
        from: String,
        /// After.
        to: String,
    },
    /// A column has another type, the one that it is planned with.
    Retype {
        /// Its name.
        name: String,
    },
}

/// A table that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evolution {
    /// The table from now on.
    pub definition: TableDefinition,
    /// What the destination needs, in this order.
    pub alterations: Vec<Alteration>,
    /// Columns that the policy leaves out.
    pub ignored: Vec<String>,
    /// Columns that came and went: the source has dropped them since, so their values are left out. Only for as long as the stream describes the table in
    /// this way.
    pub gone: Vec<String>,
}

/// Decides what follows from a table that changed. `sorting_key` are the destination's key columns where they are more than the table's key.
///
/// # Errors
/// Everything that keeps the table from following, each as part of a sentence.
pub fn evolve(
    recorded: &TableDefinition,
    stream: &[StreamColumn],
    current: &[CurrentColumn],
    excluded: &[String],
    sorting_key: &[String],
    policy: SchemaChangePolicy,
) -> Result<Evolution, Vec<String>> {
    let mut evolution = Evolution {
        definition: TableDefinition { columns: Vec::new(), ..recorded.clone() },
        alterations: Vec::new(),
        ignored: Vec::new(),
        gone: Vec::new(),
    };
    let mut reasons = Vec::new();
    let (mut renames, mut additions, mut retypes) = (Vec::new(), Vec::new(), Vec::new());
    let places = |name: &String| recorded.key.contains(name) || sorting_key.contains(name);
    let stream: Vec<&StreamColumn> =
        stream.iter().filter(|column| !excluded.contains(&column.name)).collect();
    for (column, identity) in stream.iter().zip(identify(recorded, &stream, current, excluded)) {
        let no_values = Backfill::Unknown;
        let (now, backfill) = match &identity {
            Identity::Current(now) => (&now.column, &now.backfill),
            Identity::Known(known) => (known, &no_values),
            Identity::Gone => {
                evolution.gone.push(column.name.clone());
                continue;
            }
            Identity::Unclear => {
                reasons.push(format!(
                    "column {:?} has changed again since, so nobody can tell which column it was",
                    column.name
                ));
                continue;
            }
        };
        let known = recorded.columns.iter().find(|known| known.attribute == now.attribute);
        let Some(known) = known else {
            if policy == SchemaChangePolicy::Ignore {
                evolution.ignored.push(now.name.clone());
                continue;
            }
            match addition(now, backfill) {
                Ok(addition) => additions.push(addition),
                Err(reason) => reasons.push(reason),
            }
            evolution.definition.columns.push(now.clone());
            continue;
        };
        if known.name != now.name {
            if places(&known.name) {
                reasons.push(format!(
                    "column {:?} is called {:?} now, and is part of the destination's sorting key, which cannot be renamed",
                    known.name, now.name
                ));
            } else if policy == SchemaChangePolicy::Ignore {
                reasons.push(format!(
                    "column {:?} is called {:?} now, which schemaChanges: ignore cannot ignore",
                    known.name, now.name
                ));
            }
            renames.push(Alteration::Rename { from: known.name.clone(), to: now.name.clone() });
        }
        // What may hold NULL in the destination stays so.
        let mut follows = SourceColumn { nullable: known.nullable || now.nullable, ..now.clone() };
        if (known.type_oid, known.type_modifier) == (follows.type_oid, follows.type_modifier) {
            // The destination was made for what the type was taken for then, whatever is known of it today.
            follows.pg_type = known.pg_type.clone();
            if known.nullable != follows.nullable && !places(&known.name) {
                retypes.push(Alteration::Retype { name: now.name.clone() });
            }
        } else {
            match retyped(known, &follows) {
                Fit::Same => {}
                Fit::Wider if !places(&known.name) && policy != SchemaChangePolicy::Ignore => {
                    retypes.push(Alteration::Retype { name: now.name.clone() });
                }
                Fit::Wider | Fit::No => reasons.push(format!(
                    "column {:?} was {} and is {} now",
                    known.name, known.type_name, now.type_name
                )),
            }
        }
        evolution.definition.columns.push(follows);
    }
    let mut drops = Vec::new();
    for known in &recorded.columns {
        if evolution.definition.columns.iter().any(|column| column.attribute == known.attribute) {
            continue;
        }
        if current.iter().any(|now| now.column.attribute == known.attribute) {
            reasons.push(format!("column {:?} is not in the change stream", known.name));
        } else if places(&known.name) {
            reasons.push(format!("column {:?}, by which rows are told apart, was dropped", known.name));
        } else if policy == SchemaChangePolicy::PropagateAll {
            drops.push(Alteration::Drop { name: known.name.clone() });
        } else {
            evolution.definition.retired.push(known.name.clone());
        }
    }
    for alteration in renames.iter().chain(&additions) {
        if let Alteration::Add { name, .. } | Alteration::Rename { to: name, .. } = alteration
            && evolution.definition.retired.contains(name)
        {
            reasons.push(format!(
                "column {name:?} has the name of a dropped column, whose values the destination still holds"
            ));
        }
    }
    let missing = |name: &&String| !current.iter().any(|now| now.column.name == **name);
    if !additions.is_empty()
        && let Some(name) = excluded.iter().find(missing)
    {
        reasons.push(format!(
            "the excluded column {name:?} is gone while others are new, which may be the same under another name"
        ));
    }
    let taken = |to: &String| {
        renames.iter().any(|other| matches!(other, Alteration::Rename { from, .. } if from == to))
    };
    if renames.iter().any(|rename| matches!(rename, Alteration::Rename { to, .. } if taken(to))) {
        reasons.push("columns have exchanged their names".to_owned());
    }
    evolution.alterations = [drops, renames, additions, retypes].concat();
    if policy == SchemaChangePolicy::Stop && reasons.is_empty() {
        reasons = in_words(recorded, &evolution);
        if reasons.is_empty() {
            reasons.push("its columns changed".to_owned());
        }
    }
    if reasons.is_empty() { Ok(evolution) } else { Err(reasons) }
}

/// The form that a table had before it got the recorded one, where the stream is read again and sends it so, and columns that are left out because the source has dropped them
/// since. Columns that came later are not in it, and those that were widened have the type that the stream sends. The destination needs nothing: it has the recorded form.
/// `None` where that does not tell which column is which.
pub fn earlier_form(
    recorded: &TableDefinition,
    stream: &[StreamColumn],
    excluded: &[String],
) -> Option<(TableDefinition, Vec<String>)> {
    let (mut columns, mut gone): (Vec<SourceColumn>, Vec<String>) = (Vec::new(), Vec::new());
    for sent in stream.iter().filter(|column| !excluded.contains(&column.name)) {
        match recorded.columns.iter().find(|known| known.name == sent.name) {
            Some(known) => columns.push(SourceColumn {
                type_oid: sent.type_oid,
                type_modifier: sent.type_modifier,
                pg_type: earlier_type(known, sent.type_oid)?,
                ..known.clone()
            }),
            None => gone.push(sent.name.clone()),
        }
    }
    let came_later = |known: &SourceColumn| {
        !known.generated && columns.iter().all(|column| column.attribute != known.attribute)
    };
    // A column that is gone may be one that came, under its name of then.
    let may_be_renamed = gone.iter().any(|name| !recorded.retired.contains(name));
    let has_key = recorded.key.iter().all(|key| columns.iter().any(|column| column.name == *key));
    let is_clear = !(may_be_renamed && recorded.columns.iter().any(came_later));
    let in_order = columns.is_sorted_by_key(|column| column.attribute);
    (is_clear && in_order && has_key).then(|| (TableDefinition { columns, ..recorded.clone() }, gone))
}

/// The type that a column had while it was declared otherwise, out of those that [`retyped`] lets it come from.
fn earlier_type(known: &SourceColumn, type_oid: u32) -> Option<PgType> {
    use PgType as T;
    match (type_oid, &known.pg_type) {
        (21, T::Int2 | T::Int4 | T::Int8) => Some(T::Int2),
        (23, T::Int4 | T::Int8) => Some(T::Int4),
        (700, T::Float4 | T::Float8) => Some(T::Float4),
        // char, name, text, bpchar, varchar
        (18 | 19 | 25 | 1042 | 1043, T::Text) => Some(T::Text),
        _ => (type_oid == known.type_oid).then(|| known.pg_type.clone()),
    }
}

/// Which column one of the stream's is.
enum Identity<'a> {
    /// One that the source still has under this name.
    Current(&'a CurrentColumn),
    /// One that was recorded, as the stream has it: the source has dropped or renamed it since.
    Known(SourceColumn),
    /// One that was added and dropped since.
    Gone,
    Unclear,
}

/// The catalog may be ahead of the stream. Columns come in the order of their numbers, and one that was recorded and exists still must be in the stream under some
/// name: where exactly as many names are left as such columns, the names are theirs.
fn identify<'a>(
    recorded: &TableDefinition,
    stream: &[&StreamColumn],
    current: &'a [CurrentColumn],
    excluded: &[String],
) -> Vec<Identity<'a>> {
    let same = |column: &SourceColumn, sent: &StreamColumn| {
        column.name == sent.name
            && (column.type_oid, column.type_modifier) == (sent.type_oid, sent.type_modifier)
    };
    let is_alive = |attribute: i16| current.iter().any(|now| now.column.attribute == attribute);
    let mut identities: Vec<Option<Identity<'_>>> = Vec::new();
    let mut found = Vec::new();
    for sent in stream {
        let now = current.iter().find(|now| same(&now.column, sent));
        let known = || recorded.columns.iter().find(|known| same(known, sent) && !is_alive(known.attribute));
        identities.push(match now {
            Some(now) => {
                found.push(now.column.attribute);
                Some(Identity::Current(now))
            }
            None => known().map(|known| {
                found.push(known.attribute);
                Identity::Known(known.clone())
            }),
        });
    }
    let missing: Vec<&SourceColumn> = recorded
        .columns
        .iter()
        .filter(|known| is_alive(known.attribute) && !found.contains(&known.attribute))
        .collect();
    let is_new = |now: &&CurrentColumn| {
        let column = &now.column;
        !found.contains(&column.attribute)
            && !column.generated
            && !excluded.contains(&column.name)
            && recorded.columns.iter().all(|known| known.attribute != column.attribute)
    };
    let unknown = identities.iter().filter(|identity| identity.is_none()).count();
    let came_and_went = missing.is_empty() && current.iter().filter(is_new).count() == 0;
    let mut renamed = missing.iter();
    let complete = |(identity, sent): (Option<Identity<'a>>, &&StreamColumn)| {
        let unclear = || match renamed.next().filter(|_| unknown == missing.len()) {
            Some(known) if (known.type_oid, known.type_modifier) == (sent.type_oid, sent.type_modifier) => {
                Identity::Known(SourceColumn { name: sent.name.clone(), ..(*known).clone() })
            }
            _ if came_and_went => Identity::Gone,
            _ => Identity::Unclear,
        };
        identity.unwrap_or_else(unclear)
    };
    identities.into_iter().zip(stream).map(complete).collect()
}

fn in_words(recorded: &TableDefinition, evolution: &Evolution) -> Vec<String> {
    let retired = evolution.definition.retired.iter().filter(|name| !recorded.retired.contains(name));
    let retired = retired.map(|name| format!("column {name:?} was dropped"));
    let altered = evolution.alterations.iter().map(|alteration| match alteration {
        Alteration::Add { name, .. } => format!("column {name:?} was added"),
        Alteration::Drop { name } => format!("column {name:?} was dropped"),
        Alteration::Rename { from, to } => format!("column {from:?} is called {to:?} now"),
        Alteration::Retype { name } => format!("column {name:?} has another type"),
    });
    retired.chain(altered).collect()
}

fn addition(now: &SourceColumn, backfill: &Backfill) -> Result<Alteration, String> {
    let backfill = match backfill {
        Backfill::Null => None,
        Backfill::Value(text) if is_empty(&now.pg_type, text) => None,
        Backfill::Value(text) => Some(literal(&now.pg_type, text).ok_or_else(|| {
            format!(
                "column {:?} is new, and its default for older rows cannot be written in ClickHouse",
                now.name
            )
        })?),
        Backfill::Unknown => {
            return Err(format!(
                "column {:?} is new, and what older rows hold in it was computed row by row",
                now.name
            ));
        }
    };
    Ok(Alteration::Add { name: now.name.clone(), backfill })
}

/// Whether it is an empty array or map, which is the default of the destination's type.
fn is_empty(source: &PgType, text: &str) -> bool {
    match source {
        PgType::Array(_) => text == "{}",
        PgType::Hstore => text.is_empty(),
        _ => false,
    }
}

/// A value's text form as ClickHouse casts it to the column's type; `None` where that would not be the same value.
fn literal(source: &PgType, text: &str) -> Option<String> {
    match source {
        PgType::Bool => Some(if text == "t" { "true" } else { "false" }.to_owned()),
        PgType::Timestamp | PgType::TimestampTz => {
            let text = text.strip_suffix("+00").unwrap_or(text);
            let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"-: .".contains(&byte));
            (plain && in_text_range(text)).then(|| text.to_owned())
        }
        PgType::Date => in_text_range(text).then(|| text.to_owned()),
        // Other forms on the two sides.
        PgType::Bytea | PgType::Array(_) | PgType::Hstore | PgType::Vector | PgType::HalfVec => None,
        _ => Some(text.to_owned()),
    }
}

/// ClickHouse reads dates of these years only.
fn in_text_range(text: &str) -> bool {
    text.split_once('-')
        .and_then(|(year, _)| year.parse::<u16>().ok())
        .is_some_and(|year| (1900..=2299).contains(&year))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The destination's type is the same.
    Same,
    /// Every value of the old type is the same value of the new one, on both sides.
    Wider,
    No,
}

fn retyped(known: &SourceColumn, now: &SourceColumn) -> Fit {
    use PgType as T;
    /// `character(n)`, whose padding other types do not keep.
    const BPCHAR: u32 = 1042;
    let longer =
        now.type_modifier == -1 || (known.type_modifier != -1 && now.type_modifier >= known.type_modifier);
    match (&known.pg_type, &now.pg_type) {
        (T::Text, T::Text)
            if known.type_oid == now.type_oid || ![known.type_oid, now.type_oid].contains(&BPCHAR) =>
        {
            if longer {
                Fit::Same
            } else {
                Fit::No
            }
        }
        (T::Timestamp, T::Timestamp) | (T::TimestampTz, T::TimestampTz) | (T::Time, T::Time) if longer => {
            Fit::Same
        }
        (T::Int2, T::Int4 | T::Int8) | (T::Int4, T::Int8) | (T::Float4, T::Float8) => Fit::Wider,
        (T::Numeric(Some((digits, scale))), T::Numeric(Some((new_digits, new_scale)))) => {
            let whole = |digits: u16, scale: i16| i32::from(digits) - i32::from(scale);
            let is_decimal =
                |digits: u16, scale: i16| digits <= 76 && scale >= 0 && whole(digits, scale) >= 0;
            let wider = new_scale >= scale && whole(*new_digits, *new_scale) >= whole(*digits, *scale);
            let decimals = is_decimal(*digits, *scale) && is_decimal(*new_digits, *new_scale);
            if wider && decimals { Fit::Wider } else { Fit::No }
        }
        _ => Fit::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_model::{Lsn, ReplicaIdentity, TableName};

    fn column(attribute: i16, name: &str, pg_type: PgType) -> SourceColumn {
        let type_oid = match pg_type {
            PgType::Int4 => 23,
            PgType::Int8 => 20,
            _ => 25,
        };
        SourceColumn {
            name: name.to_owned(),
            attribute,
            type_oid,
            type_modifier: -1,
            type_name: format!("{pg_type:?}"),
            pg_type,
            nullable: attribute > 1,
            generated: false,
        }
    }

    fn recorded() -> TableDefinition {
        TableDefinition {
            name: TableName::new("public", "t"),
            oid: 1,
            file_node: 1,
            columns: vec![
                column(1, "id", PgType::Int8),
                column(2, "a", PgType::Int4),
                column(3, "b", PgType::Text),
            ],
            key: vec!["id".to_owned()],
            replica_identity: ReplicaIdentity::Default,
            pages: 0,
            estimated_rows: 0,
            bytes: 0,
            retired: Vec::new(),
            partitions: Vec::new(),
            distrusted_until: Lsn::ZERO,
            holds_from: Lsn::ZERO,
        }
    }

    /// The catalog says what the stream says.
    fn told(
        recorded: &TableDefinition,
        columns: &[(SourceColumn, Backfill)],
        policy: SchemaChangePolicy,
    ) -> String {
        let stream: Vec<_> = columns
            .iter()
            .map(|(column, _)| StreamColumn {
                name: column.name.clone(),
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
            })
            .collect();
        let current: Vec<_> = columns
            .iter()
            .map(|(column, backfill)| CurrentColumn { column: column.clone(), backfill: backfill.clone() })
            .collect();
        match evolve(recorded, &stream, &current, &["secret".to_owned()], &[], policy) {
            Ok(evolution) => format!(
                "{:?}; retired {:?}; left out {:?} {:?}; {} columns",
                evolution.alterations,
                evolution.definition.retired,
                evolution.ignored,
                evolution.gone,
                evolution.definition.columns.len()
            ),
            Err(reasons) => format!("no: {}", reasons.join("; ")),
        }
    }

    #[test]
    fn what_follows_from_a_change_is_one_table() {
        use SchemaChangePolicy as P;
        let id = || (column(1, "id", PgType::Int8), Backfill::Null);
        let a = || (column(2, "a", PgType::Int4), Backfill::Null);
        let b = || (column(3, "b", PgType::Text), Backfill::Null);
        let secret = || (column(9, "secret", PgType::Text), Backfill::Null);
        let five = || Backfill::Value("5".to_owned());
        let changes: Vec<(&str, Vec<(SourceColumn, Backfill)>)> = vec![
            ("added", vec![id(), a(), b(), secret(), (column(4, "c", PgType::Int4), Backfill::Null)]),
            ("added with default", vec![id(), a(), b(), secret(), (column(4, "c", PgType::Int4), five())]),
            (
                "added with computed values",
                vec![id(), a(), b(), secret(), (column(4, "c", PgType::Int4), Backfill::Unknown)],
            ),
            ("dropped", vec![id(), a(), secret()]),
            ("renamed", vec![id(), a(), (column(3, "c", PgType::Text), Backfill::Null), secret()]),
            ("dropped and added", vec![id(), a(), (column(4, "c", PgType::Text), Backfill::Null), secret()]),
            (
                "dropped and added again",
                vec![id(), a(), (column(4, "b", PgType::Text), Backfill::Null), secret()],
            ),
            (
                "names exchanged",
                vec![
                    id(),
                    (column(2, "b", PgType::Int4), Backfill::Null),
                    (column(3, "a", PgType::Text), Backfill::Null),
                    secret(),
                ],
            ),
            ("widened", vec![id(), (column(2, "a", PgType::Int8), Backfill::Null), b(), secret()]),
            ("another type", vec![id(), (column(2, "a", PgType::Text), Backfill::Null), b(), secret()]),
            ("key renamed", vec![(column(1, "key", PgType::Int8), Backfill::Null), a(), b(), secret()]),
            ("key dropped", vec![a(), b(), secret()]),
            ("excluded renamed", vec![id(), a(), b(), (column(9, "open", PgType::Text), Backfill::Null)]),
        ];
        let mut text = String::new();
        for (what, columns) in &changes {
            for policy in [P::Propagate, P::PropagateAll, P::Ignore, P::Stop] {
                text.push_str(&format!("{what} / {policy:?}: {}\n", told(&recorded(), columns, policy)));
            }
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_stream_that_the_catalog_has_outrun_is_followed_only_where_nothing_is_guessed() {
        let sent = |columns: &[(&str, u32)]| -> Vec<StreamColumn> {
            let column = |(name, type_oid): &(&str, u32)| StreamColumn {
                name: (*name).to_owned(),
                type_oid: *type_oid,
                type_modifier: -1,
            };
            columns.iter().map(column).collect()
        };
        let (id, a) = (column(1, "id", PgType::Int8), column(2, "a", PgType::Int4));
        let is = column(3, "is", PgType::Text);
        let decide = |stream: &[(&str, u32)], current: &[&SourceColumn]| {
            let current: Vec<_> = current
                .iter()
                .map(|column| CurrentColumn { column: (*column).clone(), backfill: Backfill::Null })
                .collect();
            let evolution =
                evolve(&recorded(), &sent(stream), &current, &[], &[], SchemaChangePolicy::Propagate);
            evolution
                .map(|evolution| format!("{:?} {:?}", evolution.alterations, evolution.gone))
                .unwrap_or_else(|reasons| reasons.join("; "))
        };
        // Renamed twice; added and dropped; still there before it is dropped; and what cannot be told.
        let told = [
            decide(&[("id", 20), ("a", 23), ("was", 25)], &[&id, &a, &is]),
            decide(
                &[("id", 20), ("a", 23), ("b", 25), ("came", 25)],
                &[&id, &a, &column(3, "b", PgType::Text)],
            ),
            decide(&[("id", 20), ("a", 23), ("b", 25), ("c", 23)], &[&id, &a, &column(4, "c", PgType::Int4)]),
            decide(
                &[("id", 20), ("a", 23), ("b", 25), ("came", 25)],
                &[&id, &a, &column(3, "b", PgType::Text), &column(4, "other", PgType::Text)],
            ),
        ];
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn an_added_array_or_map_may_be_empty_in_older_rows() {
        let added = |pg_type: PgType, text: &str| {
            addition(&column(4, "c", pg_type), &Backfill::Value(text.to_owned())).map(|alteration| {
                match alteration {
                    Alteration::Add { backfill, .. } => backfill,
                    other => panic!("{other:?}"),
                }
            })
        };
        let array = || PgType::Array(Box::new(PgType::Int4));
        assert_eq!(added(array(), "{}"), Ok(None));
        assert_eq!(added(PgType::Hstore, ""), Ok(None));
        assert_eq!(added(PgType::Text, ""), Ok(Some(String::new())));
        for (pg_type, text) in [(array(), "{1}"), (PgType::Hstore, "\"a\"=>\"1\""), (PgType::Vector, "[1]")] {
            assert!(added(pg_type, text).is_err_and(|reason| reason.contains("cannot be written")));
        }
    }

    #[test]
    fn what_a_type_was_taken_for_when_the_table_was_made_stays() {
        let mut recorded = recorded();
        recorded.columns[2].pg_type = PgType::Other("hstore".to_owned());
        let now =
            [column(1, "id", PgType::Int8), column(2, "a", PgType::Int4), column(3, "b", PgType::Hstore)];
        let told =
            told(&recorded, &now.map(|column| (column, Backfill::Null)), SchemaChangePolicy::Propagate);
        assert_eq!(told, "[]; retired []; left out [] []; 3 columns");
    }

    #[test]
    fn what_was_sent_before_the_recorded_form_is_recognised_where_its_columns_are_clear() {
        let mut table = recorded();
        table.columns[1] = column(2, "a", PgType::Int8);
        table.columns.push(column(5, "c", PgType::Int4));
        table.retired = vec!["old".to_owned()];
        let told = |columns: &[(&str, u32)]| {
            let column = |(name, type_oid): &(&str, u32)| StreamColumn {
                name: (*name).to_owned(),
                type_oid: *type_oid,
                type_modifier: -1,
            };
            let stream: Vec<StreamColumn> = columns.iter().map(column).collect();
            earlier_form(&table, &stream, &["secret".to_owned()]).map(|(form, gone)| {
                let columns: Vec<String> = form
                    .columns
                    .iter()
                    .map(|column| format!("{} {:?}", column.name, column.pg_type))
                    .collect();
                format!("{}; left out {gone:?}", columns.join(", "))
            })
        };
        let (id, b) = (("id", 20), ("b", 25));
        // Before a column came, before one was widened, before one was dropped.
        let form = told(&[id, ("a", 23), b, ("old", 25), ("secret", 25)]);
        assert_eq!(form.as_deref(), Some("id Int8, a Int4, b Text; left out [\"old\"]"));
        let form = told(&[id, ("a", 21), b, ("c", 23), ("x", 25)]);
        assert_eq!(form.as_deref(), Some("id Int8, a Int2, b Text, c Int4; left out [\"x\"]"));
        // Renamed or dropped with another added; another order; another type; another key.
        assert_eq!(told(&[id, ("a", 20), b, ("x", 23)]), None);
        assert_eq!(told(&[id, b, ("a", 20)]), None);
        assert_eq!(told(&[id, ("a", 25), b]), None);
        assert_eq!(told(&[("a", 20), b]), None);
    }

    #[test]
    fn decimals_widen_by_whole_and_by_fractional_digits() {
        let fit = |from, to| {
            let known = column(2, "a", PgType::Numeric(from));
            retyped(&known, &column(2, "a", PgType::Numeric(to)))
        };
        assert_eq!(fit(Some((12, 2)), Some((14, 4))), Fit::Wider);
        assert_eq!(fit(Some((12, 2)), Some((12, 4))), Fit::No);
        assert_eq!(fit(Some((12, 2)), Some((80, 2))), Fit::No);
        assert_eq!(fit(Some((12, 2)), None), Fit::No);
    }
}
