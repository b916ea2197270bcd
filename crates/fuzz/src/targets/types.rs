//! The source types, each with values in both of PostgreSQL's forms, and the columns planned for them.

use millrace_mapping::{ColumnPlan, MappingOptions, plan_columns};
use millrace_model::{PgType, ReplicaIdentity, SourceColumn, TableDefinition, TableName};

use super::forms::{array_binary, array_text, hstore_binary, hstore_text, numeric_binary};

/// Every type, numerics in several declarations.
pub fn scalars() -> Vec<PgType> {
    vec![
        PgType::Bool,
        PgType::Int2,
        PgType::Int4,
        PgType::Int8,
        PgType::Oid,
        PgType::Float4,
        PgType::Float8,
        PgType::Numeric(None),
        PgType::Numeric(Some((9, 4))),
        PgType::Numeric(Some((18, 0))),
        PgType::Numeric(Some((38, 9))),
        PgType::Numeric(Some((76, 38))),
        PgType::Numeric(Some((5, -2))),
        PgType::Numeric(Some((76, 76))),
        PgType::Text,
        PgType::Json,
        PgType::Jsonb,
        PgType::Bytea,
        PgType::Uuid,
        PgType::Date,
        PgType::Timestamp,
        PgType::TimestampTz,
        PgType::Time,
        PgType::Enum,
        PgType::Other("interval".to_owned()),
        PgType::Other("box".to_owned()),
        PgType::Hstore,
        PgType::Vector,
        PgType::HalfVec,
    ]
}

/// Every type and an array of it.
pub fn all() -> Vec<PgType> {
    let scalars = scalars();
    let arrays: Vec<PgType> =
        scalars.iter().map(|element| PgType::Array(Box::new(element.clone()))).collect();
    scalars.into_iter().chain(arrays).collect()
}

/// The ways in which a column of one type may be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planning {
    /// The source column may hold NULL.
    pub nullable: bool,
    /// The mapping's options.
    pub options: MappingOptions,
}

impl Planning {
    /// All of them.
    pub fn all() -> [Planning; 6] {
        [0, 1, 2, 3, 4, 5].map(Self::numbered)
    }

    /// One of them, chosen by any byte.
    pub fn numbered(number: u8) -> Planning {
        let (nullable, allow_nullable_columns) =
            [(true, true), (true, false), (false, true)][usize::from(number % 3)];
        let time64 = (number / 3).is_multiple_of(2);
        Planning { nullable, options: MappingOptions { allow_nullable_columns, time64 } }
    }
}

/// A column of a source table.
pub fn column(name: &str, pg_type: PgType, type_oid: u32, nullable: bool) -> SourceColumn {
    SourceColumn {
        name: name.to_owned(),
        attribute: 1,
        type_oid,
        type_modifier: -1,
        type_name: "a type".to_owned(),
        pg_type,
        nullable,
        generated: false,
    }
}

/// A source table of some columns.
pub fn table(
    name: &str,
    oid: u32,
    columns: Vec<SourceColumn>,
    key: &[&str],
    identity: ReplicaIdentity,
) -> TableDefinition {
    TableDefinition {
        name: TableName::new("public", name),
        oid,
        file_node: oid,
        columns,
        key: key.iter().map(|column| (*column).to_owned()).collect(),
        replica_identity: identity,
        pages: 0,
        estimated_rows: 0,
        bytes: 0,
        retired: Vec::new(),
        partitions: Vec::new(),
        distrusted_until: millrace_model::Lsn::ZERO,
        holds_from: millrace_model::Lsn::ZERO,
    }
}

/// Columns of some types, `c0` and on.
pub fn plan(types: &[PgType], planning: Planning) -> Vec<ColumnPlan> {
    let columns = types.iter().enumerate();
    let columns =
        columns.map(|(at, pg_type)| column(&format!("c{at}"), pg_type.clone(), 1, planning.nullable));
    plan_columns(&table("t", 1, columns.collect(), &[], ReplicaIdentity::Default), &planning.options)
}

/// A value in both forms; `None` where the type has no binary form that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// As text.
    pub text: Vec<u8>,
    /// As binary.
    pub binary: Option<Vec<u8>>,
}

fn sample(text: impl AsRef<[u8]>, binary: impl Into<Vec<u8>>) -> Sample {
    Sample { text: text.as_ref().to_vec(), binary: Some(binary.into()) }
}

/// A few values of a type, as PostgreSQL writes them.
pub fn samples(pg_type: &PgType) -> Vec<Sample> {
    let same = |text: &str| sample(text, text);
    let number = |text: &str| sample(text, numeric_binary(text));
    match pg_type {
        PgType::Bool => vec![sample("t", [1]), sample("f", [0])],
        PgType::Int2 => [i16::MIN, 0, 7].map(|n| sample(n.to_string(), n.to_be_bytes())).to_vec(),
        PgType::Int4 => [i32::MIN, -1, 42].map(|n| sample(n.to_string(), n.to_be_bytes())).to_vec(),
        PgType::Int8 => [i64::MIN, 0, i64::MAX].map(|n| sample(n.to_string(), n.to_be_bytes())).to_vec(),
        PgType::Oid => [0, u32::MAX].map(|n| sample(n.to_string(), n.to_be_bytes())).to_vec(),
        PgType::Float4 => vec![
            sample("1.5", 1.5f32.to_be_bytes()),
            sample("NaN", f32::NAN.to_be_bytes()),
            sample("-Infinity", f32::NEG_INFINITY.to_be_bytes()),
        ],
        PgType::Float8 => vec![
            sample("1e-300", 1e-300f64.to_be_bytes()),
            sample("-0", (-0.0f64).to_be_bytes()),
            sample("Infinity", f64::INFINITY.to_be_bytes()),
        ],
        PgType::Numeric(Some((9, _))) => vec![number("-12345.6789"), number("0.0000"), number("NaN")],
        PgType::Numeric(Some((18, _))) => vec![number("123456789012345678"), number("0"), number("10000")],
        PgType::Numeric(Some((_, -2))) => vec![number("1234500"), number("-100"), number("0")],
        PgType::Numeric(Some((76, 76))) => vec![number(&format!("0.{:076}", 123))],
        PgType::Numeric(Some((76, _))) => vec![number(&format!("{}.{:038}", "9".repeat(38), 1))],
        PgType::Numeric(Some(_)) => {
            vec![number("99999999999999999999999999999.999999999"), number("1.000000001")]
        }
        PgType::Numeric(None) => {
            vec![
                number("1e3"),
                number("-0.00000001"),
                number("NaN"),
                number("Infinity"),
                number("1234567890.5"),
            ]
        }
        PgType::Text => vec![same(""), same("plain"), same("é \"quoted\" \\ , {}"), sample("\\377", [0xff])],
        PgType::Json => vec![same("{\"a\": [1, null]}")],
        PgType::Jsonb => vec![sample("{\"a\": 1}", b"\x01{\"a\": 1}".to_vec())],
        PgType::Bytea => vec![sample("\\x", []), sample("\\x00ff10", [0, 255, 16])],
        PgType::Uuid => {
            let number = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128;
            vec![sample("01234567-89ab-cdef-0123-456789abcdef", number.to_be_bytes())]
        }
        PgType::Date => vec![
            sample("2000-01-01", 0i32.to_be_bytes()),
            sample("infinity", i32::MAX.to_be_bytes()),
            sample("1999-12-31", (-1i32).to_be_bytes()),
        ],
        PgType::Timestamp => vec![
            sample("2000-01-01 00:00:00", 0i64.to_be_bytes()),
            sample("2000-01-01 00:00:01.5", 1_500_000i64.to_be_bytes()),
            sample("-infinity", i64::MIN.to_be_bytes()),
        ],
        PgType::TimestampTz => vec![
            sample("2000-01-01 00:00:00+00", 0i64.to_be_bytes()),
            sample("1999-12-31 23:59:59.999999+00", (-1i64).to_be_bytes()),
        ],
        PgType::Time => vec![
            sample("00:00:00", 0i64.to_be_bytes()),
            sample("24:00:00", 86_400_000_000i64.to_be_bytes()),
            sample("12:34:56.789", 45_296_789_000i64.to_be_bytes()),
        ],
        PgType::Enum => vec![same("small"), same("large"), same("")],
        PgType::Other(name) => {
            let texts: &[&str] = match name.as_str() {
                "box" => &["(1,1),(0,0)"],
                _ => &["1 year 2 mons -3 days 04:05:06.789", "-00:00:01", "00:00:00"],
            };
            texts.iter().map(|text| Sample { text: text.as_bytes().to_vec(), binary: None }).collect()
        }
        PgType::Hstore => {
            let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
            let values =
                [vec![], vec![pair("a", Some("1")), pair("b c", None)], vec![pair("", Some("say \"\\\""))]];
            values.iter().map(|pairs| sample(hstore_text(pairs), hstore_binary(pairs))).collect()
        }
        PgType::Vector => vec![
            sample("[1.5]", [&b"\0\x01\0\0"[..], &1.5f32.to_be_bytes()].concat()),
            sample("[0,-3e-07]", [&b"\0\x02\0\0\0\0\0\0"[..], &(-3e-7f32).to_be_bytes()].concat()),
        ],
        PgType::HalfVec => vec![sample("[1.5,-0.099975586]", b"\0\x02\0\0\x3e\0\xae\x66".to_vec())],
        PgType::Array(element) => array_samples(element),
    }
}

fn array_samples(element: &PgType) -> Vec<Sample> {
    let delimiter = if matches!(element, PgType::Other(name) if name == "box") { b';' } else { b',' };
    let elements = samples(element);
    let texts = elements.iter().map(|sample| Some(sample.text.clone())).chain([None]);
    let texts: Vec<_> = texts.collect();
    let binaries: Option<Vec<_>> = elements.iter().map(|sample| sample.binary.clone().map(Some)).collect();
    let full = Sample {
        text: array_text(&texts, delimiter),
        binary: binaries.map(|binaries| array_binary(&[binaries, vec![None]].concat())),
    };
    let empty = Sample { text: b"{}".to_vec(), binary: full.binary.as_ref().map(|_| array_binary(&[])) };
    vec![full, empty]
}
