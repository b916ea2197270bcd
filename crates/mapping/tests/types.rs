//! Which ClickHouse type each PostgreSQL type gets.

mod support;

use millrace_mapping::{
    ColumnPlan, MappingOptions, copies_as_text, override_columns, plan_columns, streams_as_binary,
};
use millrace_model::spec::{OutOfRange, PipeSettings, TableSpec};
use millrace_model::{PgType, TableName};
use support::{OPTIONS, plan, scalar_types, table};

fn array(element: PgType) -> PgType {
    PgType::Array(Box::new(element))
}

#[test]
fn the_table_of_types() {
    let mut types = scalar_types();
    types.extend([
        PgType::Numeric(Some((77, 0))),
        PgType::Numeric(Some((2, 5))),
        PgType::Other("inet".to_owned()),
        array(PgType::Int4),
        array(PgType::Numeric(Some((10, 2)))),
        array(PgType::Numeric(None)),
        array(PgType::Enum),
        array(PgType::Time),
        array(PgType::Hstore),
        array(PgType::HalfVec),
        array(PgType::Other("box".to_owned())),
    ]);
    let mut lines = String::new();
    for pg_type in types {
        let [not_null, nullable]: [ColumnPlan; 2] =
            plan(&[("a", pg_type.clone(), false), ("b", pg_type.clone(), true)]).try_into().unwrap();
        let form = if copies_as_text(&pg_type) { "text" } else { "binary" };
        lines.push_str(&format!("{pg_type:?} ({form}): {} | {}\n", not_null.target, nullable.target));
    }
    insta::assert_snapshot!(lines, @r#"
    Bool (binary): Bool | Nullable(Bool)
    Int2 (binary): Int16 | Nullable(Int16)
    Int4 (binary): Int32 | Nullable(Int32)
    Int8 (binary): Int64 | Nullable(Int64)
    Oid (binary): UInt32 | Nullable(UInt32)
    Float4 (binary): Float32 | Nullable(Float32)
    Float8 (binary): Float64 | Nullable(Float64)
    Numeric(None) (binary): String | Nullable(String)
    Numeric(Some((7, 3))) (binary): Decimal(7, 3) | Nullable(Decimal(7, 3))
    Numeric(Some((18, 0))) (binary): Decimal(18, 0) | Nullable(Decimal(18, 0))
    Numeric(Some((12, 2))) (binary): Decimal(12, 2) | Nullable(Decimal(12, 2))
    Numeric(Some((30, 9))) (binary): Decimal(30, 9) | Nullable(Decimal(30, 9))
    Numeric(Some((38, 38))) (binary): Decimal(38, 38) | Nullable(Decimal(38, 38))
    Numeric(Some((76, 21))) (binary): Decimal(76, 21) | Nullable(Decimal(76, 21))
    Numeric(Some((5, -2))) (binary): String | Nullable(String)
    Text (binary): String | Nullable(String)
    Json (binary): String | Nullable(String)
    Jsonb (binary): String | Nullable(String)
    Bytea (binary): String | Nullable(String)
    Uuid (binary): UUID | Nullable(UUID)
    Date (binary): Date32 | Nullable(Date32)
    Timestamp (binary): DateTime64(6, 'UTC') | Nullable(DateTime64(6, 'UTC'))
    TimestampTz (binary): DateTime64(6, 'UTC') | Nullable(DateTime64(6, 'UTC'))
    Time (binary): Time64(6) | Nullable(Time64(6))
    Enum (binary): LowCardinality(String) | LowCardinality(Nullable(String))
    Hstore (binary): Map(String, Nullable(String)) | Map(String, Nullable(String))
    Vector (binary): Array(Float32) | Array(Float32)
    HalfVec (binary): Array(Float32) | Array(Float32)
    Numeric(Some((77, 0))) (binary): String | Nullable(String)
    Numeric(Some((2, 5))) (binary): String | Nullable(String)
    Other("inet") (text): String | Nullable(String)
    Array(Int4) (binary): Array(Nullable(Int32)) | Array(Nullable(Int32))
    Array(Numeric(Some((10, 2)))) (binary): Array(Nullable(Decimal(10, 2))) | Array(Nullable(Decimal(10, 2)))
    Array(Numeric(None)) (binary): Array(Nullable(String)) | Array(Nullable(String))
    Array(Enum) (binary): Array(LowCardinality(Nullable(String))) | Array(LowCardinality(Nullable(String)))
    Array(Time) (binary): Array(Nullable(Time64(6))) | Array(Nullable(Time64(6)))
    Array(Hstore) (binary): Array(Map(String, Nullable(String))) | Array(Map(String, Nullable(String)))
    Array(HalfVec) (binary): Array(Array(Float32)) | Array(Array(Float32))
    Array(Other("box")) (text): Array(Nullable(String)) | Array(Nullable(String))
    "#);
}

#[test]
fn without_time64_a_time_becomes_text() {
    let definition = table(&[("a", PgType::Time, false), ("b", array(PgType::Time), false)]);
    let plan = plan_columns(&definition, &MappingOptions { time64: false, ..OPTIONS });
    assert_eq!(plan[0].target.to_string(), "String");
    assert_eq!(plan[1].target.to_string(), "Array(Nullable(String))");
}

#[test]
fn key_columns_are_never_nullable_and_others_only_where_that_is_allowed() {
    let mut definition = table(&[("id", PgType::Int8, true), ("kind", PgType::Enum, true)]);
    definition.key = vec!["id".to_owned()];
    let targets = |options: &MappingOptions| {
        plan_columns(&definition, options).iter().map(|plan| plan.target.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(targets(&OPTIONS), ["Int64", "LowCardinality(Nullable(String))"]);
    let never = MappingOptions { allow_nullable_columns: false, ..OPTIONS };
    assert_eq!(targets(&never), ["Int64", "LowCardinality(String)"]);
}

#[test]
fn maps_and_vectors_are_text_where_that_is_asked_for() {
    let mut spec = TableSpec::new(TableName::new("public", "t"), "t");
    let chosen = [("m", "String"), ("v", "String"), ("w", "Map(String, String)"), ("x", "Array(Float32)")];
    for (column, text) in chosen {
        spec.column_types.insert(column.to_owned(), text.to_owned());
    }
    let mut columns = plan(&[
        ("m", PgType::Hstore, true),
        ("v", PgType::Vector, false),
        ("w", PgType::Hstore, true),
        ("x", PgType::HalfVec, true),
    ]);
    let refused = override_columns(&mut columns, &[], &spec, &PipeSettings::default());
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].0, "w");
    let planned: Vec<_> = columns.iter().map(|column| (column.target.to_string(), column.as_text)).collect();
    let kept = "Map(String, Nullable(String))";
    let expected = [("Nullable(String)", true), ("String", true), (kept, false), ("Array(Float32)", false)];
    assert_eq!(planned, expected.map(|(target, as_text)| (target.to_owned(), as_text)));
}

#[test]
fn one_type_without_a_binary_decoder_makes_the_whole_stream_text() {
    let mut columns = vec![("a", PgType::Int4, true), ("b", array(PgType::Uuid), true)];
    assert!(streams_as_binary(&plan(&columns)));
    columns.push(("c", array(PgType::Other("inet".to_owned())), true));
    assert!(!streams_as_binary(&plan(&columns)));
}

#[test]
fn columns_by_which_rows_are_told_apart_are_never_altered() {
    let columns = ["key", "sorted", "plain"].map(|name| (name, PgType::Date, false));
    let mut table = TableSpec::new(TableName::new("public", "t"), "t");
    table.sorting_keys = vec!["key".to_owned(), "sorted".to_owned()];
    let mut choose = |choices: &[(&str, OutOfRange)]| {
        let mut planned = plan(&columns);
        table.out_of_range = choices.iter().map(|(name, chosen)| ((*name).to_owned(), *chosen)).collect();
        let settings = PipeSettings { out_of_range: OutOfRange::Null, ..PipeSettings::default() };
        let refused = override_columns(&mut planned, &["key".to_owned()], &table, &settings);
        let refused: Vec<String> = refused.into_iter().map(|(column, _)| column).collect();
        (planned.iter().map(|column| column.out_of_range).collect::<Vec<_>>(), refused)
    };
    use OutOfRange as O;
    assert_eq!(choose(&[]), (vec![O::Stop, O::Stop, O::Null], vec![]));
    assert_eq!(choose(&[("key", O::Stop), ("plain", O::Clamp)]), (vec![O::Stop, O::Stop, O::Clamp], vec![]));
    let refused = vec!["key".to_owned(), "sorted".to_owned()];
    assert_eq!(choose(&[("key", O::Clamp), ("sorted", O::Null)]), (vec![O::Stop, O::Stop, O::Null], refused));
}
