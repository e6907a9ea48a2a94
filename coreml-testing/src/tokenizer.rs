use serde_json::{Map, Value, json};

/// A `tokenizer.json` for tests of text models: tokens 0 to 255 are the bytes, spelt as GPT-2 spells them, and token 256 ends a text.
///
/// ```
/// let json: serde_json::Value = serde_json::from_str(&coreml_testing::byte_tokenizer("</s>"))?;
/// assert_eq!(json["model"]["vocab"].as_object().map(|vocabulary| vocabulary.len()), Some(256));
/// assert_eq!(json["model"]["vocab"]["A"], 65);
/// assert_eq!((&json["added_tokens"][0]["content"], &json["added_tokens"][0]["id"]), (&"</s>".into(), &256.into()));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[must_use]
pub fn byte_tokenizer(end: &str) -> String {
    let plain = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    // The others have the characters from U+0100 on, in their order.
    let mut others = '\u{100}'..;
    let vocabulary: Map<String, Value> = (0..=u8::MAX)
        .map(|byte| {
            let spelt = if plain(byte) { Some(char::from(byte)) } else { others.next() };
            (spelt.map(String::from).unwrap_or_default(), byte.into())
        })
        .collect();
    let end = json!({"id": 256, "content": end, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
    json.to_string()
}
