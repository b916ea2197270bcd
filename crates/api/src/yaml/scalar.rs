//! Text values: references, durations, sizes, and what a mistyped key probably meant.

use std::path::Path;
use std::time::Duration;

/// The text with `${env:NAME}` and `${file:path}` replaced; the replacement itself is taken as it is.
pub(super) fn resolve(
    text: &str,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut resolved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            resolved.push_str(before);
            resolved.push_str("${");
            rest = &after[2..];
            continue;
        }
        resolved.push_str(before);
        let Some((reference, after)) = after[2..].split_once('}') else {
            return Err("'${' is not closed with '}'; '$${' stands for a literal '${'".to_owned());
        };
        resolved.push_str(&resolve_one(reference, base_dir, env)?);
        rest = after;
    }
    resolved.push_str(rest);
    Ok(resolved)
}

fn resolve_one(
    reference: &str,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    match reference.split_once(':') {
        Some(("env", name)) => env(name).ok_or_else(|| format!("the variable {name} is not set")),
        Some(("file", path)) => {
            let mut content = read_file(base_dir, path)?;
            if content.ends_with('\n') {
                content.pop();
                if content.ends_with('\r') {
                    content.pop();
                }
            }
            Ok(content)
        }
        _ => Err(format!(
            "'${{{reference}}}' is not known; write ${{env:NAME}} or ${{file:path}}, or '$${{' for a literal '${{'"
        )),
    }
}

/// The content of a text file; a relative path begins at `base_dir`.
pub(super) fn read_file(base_dir: &Path, path: &str) -> Result<String, String> {
    let path = base_dir.join(path);
    std::fs::read_to_string(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// `250ms`, `1s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// `512MiB`, `1GiB`, `1000B`, in bytes.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Some((number.parse().ok()?, unit.trim_start()))
}

/// The known key that a mistyped one is most like: written in another case or with other separators, or up to two letters off.
pub(super) fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |key: &str| key.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let wanted = plain(key);
    let candidates = known.iter().map(|known| (edit_distance(&wanted, &plain(known)), *known));
    let (distance, nearest) = candidates.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2 && distance < nearest.chars().count()).then_some(nearest)
}

/// Levenshtein's distance.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut left_of = i + 1;
        for (above, to) in row.iter_mut().skip(1).zip(&right) {
            let cost = diagonal + usize::from(from != *to);
            diagonal = *above;
            left_of = cost.min(diagonal + 1).min(left_of + 1);
            *above = left_of;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<String, String> {
        resolve(text, Path::new("/nowhere"), &|name| (name == "PASSWORD").then(|| "a${env:X}b".to_owned()))
    }

    #[test]
    fn references_are_replaced_once_and_anywhere() {
        assert_eq!(resolved("x-${env:PASSWORD}-y"), Ok("x-a${env:X}b-y".to_owned()));
        assert_eq!(resolved("$5 $${env:PASSWORD} $"), Ok("$5 ${env:PASSWORD} $".to_owned()));
    }

    #[test]
    fn references_that_lead_nowhere_are_refused() {
        for text in ["${env:OTHER}", "${env:PASSWORD", "${PASSWORD}", "${file:absent}", "${}"] {
            assert!(resolved(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_loses_its_last_line_end_only() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "one\n\r\n").unwrap();
        assert_eq!(resolve("${file:secret}", folder.path(), &|_| None), Ok("one\n".to_owned()));
    }

    #[test]
    fn durations_and_sizes_need_their_unit() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("2 m"), Some(Duration::from_secs(120)));
        for text in ["", "1", "s", "1.5s", "-1s", "1d", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(duration(text), None, "{text}");
        }
        assert_eq!(bytes("1GiB"), Some(1 << 30));
        assert_eq!(bytes("20000000TiB"), None);
        assert_eq!(bytes("1 gib"), None);
    }

    #[test]
    fn a_mistyped_key_finds_its_like() {
        let known = ["source", "target", "excludedColumns", "sortingKeys"];
        assert_eq!(nearest("sourc", &known), Some("source"));
        assert_eq!(nearest("excluded_columns", &known), Some("excludedColumns"));
        assert_eq!(nearest("sortingkey", &known), Some("sortingKeys"));
        assert_eq!(nearest("engine", &known), None);
    }
}
