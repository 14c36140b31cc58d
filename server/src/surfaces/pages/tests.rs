//! What the pages promise before a browser opens them.

use super::*;

fn paths() -> Paths {
    Paths::parse("", &["chat=/a&b".to_owned()]).unwrap()
}

fn pages() -> [(&'static str, Page); 2] {
    [
        (
            "chat",
            page(
                include_str!("chat.html"),
                include_str!("chat.js"),
                &facts(9001, &paths(), "page"),
            ),
        ),
        (
            "docs",
            page(
                include_str!("docs.html"),
                include_str!("docs.js"),
                &facts(9001, &paths(), "docs"),
            ),
        ),
    ]
}

#[test]
fn a_page_is_whole_and_refers_to_nothing_outside() {
    for (name, page) in pages() {
        let text = std::str::from_utf8(&page.body).unwrap();
        assert!(!text.contains("{{"), "{name}: a placeholder is left");
        for outside in [
            " src=",
            "stylesheet",
            "href=\"http",
            "@import",
            ": url(",
            "//cdn",
            "innerHTML",
            "eval(",
        ] {
            assert!(!text.contains(outside), "{name} contains `{outside}`");
        }
        for fact in
            ["&quot;grpc_port&quot;:9001", "&quot;own&quot;:&quot;/", "&quot;/a&amp;b&quot;"]
        {
            assert!(text.contains(fact), "{name} lacks {fact}");
        }
    }
}

#[test]
fn the_policy_allows_the_script_that_is_in_the_page_and_no_other() {
    for (name, page) in pages() {
        let text = std::str::from_utf8(&page.body).unwrap();
        assert_eq!(text.matches("<script>").count(), 1, "{name}");
        let script = text.split("<script>").nth(1).unwrap().split("</script>").next().unwrap();
        let digest = digest::digest(&digest::SHA256, script.as_bytes());
        let digest = format!("script-src 'sha256-{}';", BASE64_STANDARD.encode(digest));
        let policy = page.policy.unwrap();
        let policy = policy.to_str().unwrap();
        assert!(policy.contains(&digest), "{name}: {policy}");
        assert!(policy.starts_with("default-src 'none';"), "{name}: {policy}");
    }
}
