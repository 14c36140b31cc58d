//! Tools and choices as clients write them.

use super::*;

fn read(body: Json) -> Result<Tools> {
    let Json::Object(body) = body else { panic!("not an object") };
    let settings = Settings::of_body(&body)?;
    settings.check(1)?;
    Tools::read(&settings)
}

fn weather() -> Json {
    json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"$ref": "#/$defs/City"}},
        "$defs": {"City": {"type": "string"}}}}})
}

#[test]
fn the_choice_decides_what_the_text_has_to_be() {
    let constraint = |choice: Json| {
        let clock = json!({"type": "function", "name": "clock"});
        let body = json!({"tools": [weather(), clock], "tool_choice": choice});
        let tools = read(body).unwrap();
        tools.constraint().map(|constraint| match constraint {
            Constraint::JsonSchema(schema) => serde_json::from_str::<Json>(&schema).unwrap(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(constraint(json!("auto")), None);
    assert_eq!(constraint(json!("none")), None);
    let named = constraint(json!({"type": "function", "function": {"name": "clock"}})).unwrap();
    assert_eq!(named["properties"], json!({}));
    let required = constraint(json!("required")).unwrap();
    assert_eq!(required["items"]["anyOf"][1]["properties"]["name"], json!({"const": "clock"}));
    let city = &required["items"]["anyOf"][0]["properties"]["parameters"]["properties"]["city"];
    assert_eq!(*city, json!({"$ref": "#/$defs/t0_City"}));
    assert_eq!(required["$defs"], json!({"t0_City": {"type": "string"}}));
    assert_eq!(required["maxItems"], json!(16));
}

#[test]
fn allowed_tools_hide_the_others() {
    let choice = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
        "tools": [{"type": "function", "function": {"name": "clock"}}]}});
    let clock = json!({"type": "function", "function": {"name": "clock"}});
    let body = json!({"tools": [weather(), clock], "tool_choice": choice,
        "parallel_tool_calls": false});
    let tools = read(body).unwrap();
    assert_eq!(tools.all.iter().map(name).collect::<Vec<_>>(), ["clock"]);
    assert_eq!((tools.choice.clone(), tools.is_parallel), (Choice::Required, false));
    assert_eq!(tools.calls("parameters")["maxItems"], json!(1));
}

#[test]
fn what_is_no_tool_is_refused_by_place() {
    let named = |name: &str| json!([{"type": "function", "function": {"name": name}}]);
    let table = [
        (json!({"tools": 1}), "`tools`: expected a list"),
        (json!({"tools": [1]}), "`tools[0]`: expected an object"),
        (json!({"tools": [{"type": "custom"}]}), "`tools[0].type`: `custom` tools"),
        (json!({"tools": named("a b")}), "`tools[0].function.name`: expected 1 to 64"),
        (json!({"tools": named(&"a".repeat(65))}), "`tools[0].function.name`"),
        (json!({"tool_choice": "auto"}), "`tool_choice`: is only allowed"),
        (json!({"tools": named("a"), "tool_choice": "all"}), "got `all`"),
        (
            json!({"tools": named("a"), "tool_choice": {"type": "function", "function":
            {"name": "b"}}}),
            "`b` is not one of the tools",
        ),
    ];
    for (body, expected) in table {
        let error = read(body.clone()).unwrap_err();
        assert!(error.message().contains(expected), "{body}: {error}");
        assert!(error.param().is_some(), "{error}");
    }
}
