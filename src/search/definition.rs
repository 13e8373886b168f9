//! An index as FT.INFO tells it, and the FT.CREATE that makes one of which FT.INFO tells the same.
//!
//! What FT.INFO tells and we do not know is kept by name: it is said, never left out in silence.

use crate::resp::Reply;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// What an index may have and FT.INFO does not tell, for reports.
pub const TOLD_BY_NOBODY: &str = "FT.INFO tells neither TEMPORARY, PHONETIC, EF_RUNTIME, EPSILON, INITIAL_CAP nor BLOCK_SIZE of an index: where they were set before the migration began, they are missing at the target; no command lists aliases and dictionaries (FT.DICTADD), which mode \"replica\" finds by the names in the snapshot and mode \"scan\" does not";

/// Members of FT.INFO that say how an index does, not what it is.
const STATE: [&str; 33] = [
    "num_docs",
    "max_doc_id",
    "num_terms",
    "num_records",
    "inverted_sz_mb",
    "vector_index_sz_mb",
    "total_inverted_index_blocks",
    "offset_vectors_sz_mb",
    "doc_table_size_mb",
    "sortable_values_size_mb",
    "key_table_size_mb",
    "tag_overhead_sz_mb",
    "text_overhead_sz_mb",
    "total_index_memory_sz_mb",
    "geoshapes_sz_mb",
    "records_per_doc_avg",
    "bytes_per_record_avg",
    "offsets_per_term_avg",
    "offset_bits_per_record_avg",
    "hash_indexing_failures",
    "total_indexing_time",
    "indexing",
    "percent_indexed",
    "number_of_uses",
    "cleaning",
    "gc_stats",
    "cursor_stats",
    "dialect_stats",
    "Index Errors",
    "field statistics",
    "state",
    "backfill_in_progress",
    "backfill_complete_percent",
];
/// Parameters of a vector, as FT.INFO and FT.CREATE call them.
const VECTOR: [(&str, &str); 11] = [
    ("data_type", "TYPE"),
    ("dim", "DIM"),
    ("distance_metric", "DISTANCE_METRIC"),
    ("M", "M"),
    ("ef_construction", "EF_CONSTRUCTION"),
    ("ef_runtime", "EF_RUNTIME"),
    ("epsilon", "EPSILON"),
    ("compression", "COMPRESSION"),
    ("construction_window_size", "CONSTRUCTION_WINDOW_SIZE"),
    ("graph_max_degree", "GRAPH_MAX_DEGREE"),
    ("search_window_size", "SEARCH_WINDOW_SIZE"),
];
const FLAGS: [&str; 8] = [
    "NOSTEM",
    "CASESENSITIVE",
    "WITHSUFFIXTRIE",
    "INDEXEMPTY",
    "INDEXMISSING",
    "SORTABLE",
    "UNF",
    "NOINDEX",
];

type Word = Vec<u8>;

/// How an index was made, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definition {
    name: Word,
    /// What of the keys it covers begins so; an empty one covers all.
    prefixes: Vec<Word>,
    /// Words of FT.CREATE before and behind the prefixes, up to SCHEMA.
    on: Vec<Word>,
    options: Vec<Word>,
    fields: Vec<Vec<Word>>,
    unknown: BTreeSet<String>,
    documents: u64,
    indexing: bool,
}

impl Definition {
    /// From the answer of FT.INFO (RESP 2); `None` when it is no list of pairs with a name.
    pub fn from_info(reply: &Reply) -> Option<Definition> {
        let mut found = Definition::default();
        let mut stopwords = None;
        for (name, value) in pairs(reply.array()?) {
            match &*name {
                "index_name" => found.name = word(value)?,
                "index_options" => {
                    for option in value.array().unwrap_or_default() {
                        found.option(option);
                    }
                }
                "index_definition" => found.definition(value.array().unwrap_or_default()),
                "attributes" | "fields" => {
                    for field in value.array().unwrap_or_default() {
                        let field = found.field(field.array().unwrap_or_default());
                        found.fields.push(field);
                    }
                }
                "stopwords_list" => stopwords = value.array(),
                known if STATE.contains(&known) => match known {
                    "num_docs" => {
                        found.documents = value.int().and_then(|n| u64::try_from(n).ok())?;
                    }
                    "indexing" | "backfill_in_progress" => {
                        found.indexing |= value.int().unwrap_or(0) != 0;
                    }
                    "state" => {
                        found.indexing |= value.text().is_some_and(|s| s != "ready");
                    }
                    _ => {}
                },
                // Statistics that later versions add are none of a definition.
                other if other.ends_with("_mb") || other.ends_with("_stats") => {}
                other => found.not_known(other, None),
            }
        }
        if let Some(words) = stopwords {
            found.options.push(b"STOPWORDS".to_vec());
            found.options.push(words.len().to_string().into_bytes());
            found.options.extend(words.iter().filter_map(word));
        }
        (!found.name.is_empty()).then_some(found)
    }

    fn not_known(&mut self, what: &str, of: Option<&[u8]>) {
        self.unknown.insert(match of {
            Some(field) => format!("{what} of {}", String::from_utf8_lossy(field)),
            None => what.to_owned(),
        });
    }

    fn option(&mut self, option: &Reply) {
        let Some(option) = word(option) else { return };
        match &*option {
            b"NOFREQS" | b"NOFIELDS" | b"NOOFFSETS" | b"NOHL" | b"MAXTEXTFIELDS" => {
                self.options.push(option);
            }
            other => self.not_known(&String::from_utf8_lossy(other), None),
        }
    }

    fn definition(&mut self, members: &[Reply]) {
        for (name, value) in pairs(members) {
            let text = word(value).unwrap_or_default();
            let (option, plain): (&[u8], &[u8]) = match &*name {
                "key_type" => {
                    self.on = vec![b"ON".to_vec(), text];
                    continue;
                }
                "prefixes" => {
                    let prefixes = value.array().unwrap_or_default();
                    self.prefixes = prefixes.iter().filter_map(word).collect();
                    continue;
                }
                "filter" => (b"FILTER", b""),
                "default_language" => (b"LANGUAGE", b""),
                "language_field" => (b"LANGUAGE_FIELD", b""),
                "default_score" => (b"SCORE", b"1"),
                "score_field" => (b"SCORE_FIELD", b""),
                "payload_field" => (b"PAYLOAD_FIELD", b""),
                "indexes_all" if text.eq_ignore_ascii_case(b"true") => {
                    self.options
                        .extend([b"INDEXALL".to_vec(), b"ENABLE".to_vec()]);
                    continue;
                }
                "indexes_all" => continue,
                other => {
                    self.not_known(other, None);
                    continue;
                }
            };
            if text != plain {
                self.options.extend([option.to_vec(), text]);
            }
        }
    }

    /// The words of one field of the schema.
    fn field(&mut self, members: &[Reply]) -> Vec<Word> {
        let (mut identifier, mut attribute, mut kind) = (Vec::new(), Vec::new(), Vec::new());
        let (mut shape, mut valued) = (Vec::new(), Vec::new());
        let (mut algorithm, mut vector): (Word, Vec<Word>) = (Vec::new(), Vec::new());
        let mut flags = Vec::new();
        let mut rest = members.iter();
        while let Some(member) = rest.next() {
            let Some(name) = member.text() else { continue };
            if FLAGS.contains(&&*name) {
                flags.push(name.into_owned());
                continue;
            }
            let Some(value) = rest.next().and_then(word) else {
                self.not_known(&name, Some(&identifier));
                continue;
            };
            match &*name {
                "identifier" => identifier = value,
                "attribute" => attribute = value,
                "type" => kind = value,
                "coord_system" => shape = value,
                "algorithm" => algorithm = value,
                "WEIGHT" if value == b"1" => {}
                "SEPARATOR" if value.is_empty() => {}
                "WEIGHT" | "SEPARATOR" | "PHONETIC" => {
                    valued.extend([name.into_owned().into_bytes(), value]);
                }
                other => match VECTOR.iter().find(|(told, _)| *told == other) {
                    Some((_, option)) => vector.extend([option.as_bytes().to_vec(), value]),
                    None => self.not_known(other, Some(&identifier)),
                },
            }
        }
        let mut words = vec![identifier.clone()];
        if attribute != identifier && !attribute.is_empty() {
            words.extend([b"AS".to_vec(), attribute]);
        }
        words.push(kind);
        words.extend((!shape.is_empty()).then_some(shape));
        if !algorithm.is_empty() {
            words.extend([algorithm, vector.len().to_string().into_bytes()]);
            words.append(&mut vector);
        }
        words.append(&mut valued);
        // UNF stands behind SORTABLE only, and whatever else may follow both.
        let place = |flag: &str| FLAGS.iter().position(|f| *f == flag);
        flags.sort_by_key(|flag| place(flag));
        words.extend(flags.into_iter().map(String::into_bytes));
        words
    }

    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Its name, to be shown.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// It does not hold all of its documents yet.
    pub fn is_indexing(&self) -> bool {
        self.indexing
    }

    /// What FT.INFO tells of it that FT.CREATE cannot be told.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str)
    }

    pub fn prefixes(&self) -> &[Vec<u8>] {
        &self.prefixes
    }

    /// The same with other prefixes.
    pub fn with_prefixes(mut self, prefixes: Vec<Vec<u8>>) -> Definition {
        self.prefixes = prefixes;
        self
    }

    /// Made alike; how many documents they hold does not count.
    pub fn is_made_like(&self, other: &Definition) -> bool {
        let made = |d: &Definition| {
            let mut prefixes = d.prefixes.clone();
            prefixes.sort();
            (d.on.clone(), d.options.clone(), d.fields.clone(), prefixes)
        };
        made(self) == made(other) && self.unknown == other.unknown
    }

    /// The words of the command that makes it, where it is not there yet.
    pub fn create(&self) -> Vec<Vec<u8>> {
        let mut words: Vec<Word> = vec![b"FT._CREATEIFNX".to_vec(), self.name.clone()];
        words.extend(self.on.iter().cloned());
        if self.prefixes.iter().any(|p| !p.is_empty()) {
            words.extend([
                b"PREFIX".to_vec(),
                self.prefixes.len().to_string().into_bytes(),
            ]);
            words.extend(self.prefixes.iter().cloned());
        }
        words.extend(self.options.iter().cloned());
        words.push(b"SCHEMA".to_vec());
        words.extend(self.fields.iter().flatten().cloned());
        words
    }
}

/// A list of names and values.
fn pairs(list: &[Reply]) -> Vec<(Cow<'_, str>, &Reply)> {
    (list.chunks_exact(2))
        .filter_map(|pair| match pair {
            [name, value] => Some((name.text()?, value)),
            _ => None,
        })
        .collect()
}

/// A string, or a number as one.
fn word(reply: &Reply) -> Option<Word> {
    match reply {
        Reply::Int(n) => Some(n.to_string().into_bytes()),
        other => other.bytes().map(<[u8]>::to_vec),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(items: &[Reply]) -> Reply {
        Reply::Array(items.to_vec())
    }

    fn text(word: &str) -> Reply {
        Reply::Bulk(word.into())
    }

    fn texts(line: &str) -> Reply {
        Reply::Array(line.split(' ').map(text).collect())
    }

    #[test]
    fn what_info_tells_becomes_a_command_and_what_is_not_known_is_named() {
        let info = list(&[
            text("index_name"),
            text("i"),
            text("index_options"),
            texts("NOHL NEWOPTION"),
            text("index_definition"),
            list(&[
                text("key_type"),
                text("HASH"),
                text("prefixes"),
                texts("doc: art:"),
                text("default_score"),
                text("0.5"),
                text("newmember"),
                text("x"),
            ]),
            text("attributes"),
            list(&[
                texts("identifier t attribute title type TEXT WEIGHT 1 SORTABLE UNF NOSTEM"),
                texts(
                    "identifier v attribute v type VECTOR algorithm HNSW data_type FLOAT32 dim 4 distance_metric L2 M 16 newparameter 3",
                ),
            ]),
            text("num_docs"),
            Reply::Int(3),
            text("indexing"),
            Reply::Int(1),
            text("stopwords_list"),
            list(&[text("the")]),
        ]);
        let found = Definition::from_info(&info).unwrap();
        assert_eq!(
            String::from_utf8(found.create().join(&b' ')).unwrap(),
            "FT._CREATEIFNX i ON HASH PREFIX 2 doc: art: NOHL SCORE 0.5 STOPWORDS 1 the SCHEMA t AS title TEXT NOSTEM SORTABLE UNF v VECTOR HNSW 8 TYPE FLOAT32 DIM 4 DISTANCE_METRIC L2 M 16"
        );
        assert!(found.is_indexing() && found.documents() == 3);
        let unknown: Vec<&str> = found.unknown().collect();
        assert_eq!(unknown, ["NEWOPTION", "newmember", "newparameter of v"]);
    }
}
