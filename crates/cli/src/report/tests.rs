//! Tests of the page as a whole.

use super::data::{MAX_POINTS, thinned};
use super::*;

/// The embedded data, parsed.
fn embedded(page: &str) -> serde_json::Value {
    let start =
        page.find("id=\"report-data\">").expect("data element") + "id=\"report-data\">".len();
    let end = start + page[start..].find("</script>").expect("end of data");
    serde_json::from_str(&page[start..end]).expect("valid JSON")
}

#[test]
fn study_has_every_section_and_its_data() {
    let data = fake::study();
    let page = render(&data).unwrap();
    for id in ["results", "curves", "attention", "geometry", "config", "environment"] {
        assert!(page.contains(&format!("<section id=\"{id}\"")), "{id}");
        assert!(page.contains(&format!("href=\"#{id}\"")), "{id}");
    }
    let json = embedded(&page);
    assert_eq!(json["runs"].as_array().unwrap().len(), data.runs.len());
    assert_eq!(json["runs"][0]["points"]["step"][0], 20);
    assert_eq!(json["runs"][0]["samples"][0]["maps"][0]["weights"].as_array().unwrap().len(), 256);
    assert_eq!(json["runs"][0]["histograms"][1]["quantity"], "cosine");
    assert!(page.len() < 1_500_000, "{} bytes", page.len());
}

#[test]
fn page_loads_nothing() {
    let page = render(&fake::study()).unwrap();
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for reference in ["http:", "https:", "src=", "@import", "url(", "fetch(", "XMLHttpRequest"] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert_eq!(page.matches("<link").count(), 1);
}

#[test]
fn static_markup_shows_table_and_curve() {
    let page = render(&fake::study()).unwrap();
    let markup = &page[..page.find("<script").unwrap()];
    assert!(markup.contains("<th scope=\"row\">cisformer, expressive"), "table");
    assert!(markup.contains("class=\"number score best\""), "best cell");
    assert!(markup.contains("<svg role=\"img\"") && markup.contains("<polyline"), "curve");
    assert!(markup.contains("var(--series-0)") && !markup.contains("#FA00"), "colours");
}

#[test]
fn signatures_stand_without_scripts_and_are_checked() {
    let mut data = fake::experts(8);
    let page = render(&data).unwrap();
    let markup = &page[..page.find("<script").unwrap()];
    assert!(markup.contains("<section id=\"signatures\""));
    assert!(markup.contains("0.8400 ± 0.0900") && markup.contains("92.5 ± 6.1 %"));
    assert!(markup.contains("blocks.0/0 +0.400 [0.300, 0.500]"));
    let json = embedded(&page);
    assert_eq!(json["signatures"]["texts"][1]["experts"][0][2][0], 1);
    data.signatures.as_mut().unwrap().texts[0].pieces.pop();
    assert!(render(&data).unwrap_err().to_string().contains("a text's routing"));
}

/// Clicks, keys and the slider change the page, and no script fails: in a
/// browser, where there is one.
#[test]
fn signatures_answer_clicks_and_keys_in_a_browser() {
    const PROBE: &str = r##"<script>
addEventListener("error", (event) => { document.body.dataset.failed = event.message; });
addEventListener("load", () => setTimeout(() => {
  const one = (selector) => document.querySelector("#signatures " + selector);
  const said = [one("[data-role=map] table").dataset.label];
  one("[data-role=map-controls] button:nth-child(2)").click();
  said.push(one("[data-role=map] table").dataset.label);
  const less = one("[data-role=map-controls] select");
  less.value = "0";
  less.dispatchEvent(new Event("change"));
  said.push("less " + one("[data-role=map] table").dataset.other);
  const plane = one("[data-role=plane] svg");
  plane.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  said.push(plane.getAttribute("aria-label"));
  one(".routed-token").click();
  said.push(one("[data-role=text-note]").textContent);
  document.body.dataset.said = said.join("; ");
}, 200));
</script></body>"##;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let runs = |name: &&&str| {
        std::process::Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    let Some(browser) = names.iter().find(runs) else { return };
    let page = render(&fake::experts(8)).unwrap().replace("</body>", PROBE);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, page).unwrap();
    let shown = std::process::Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", path.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&shown.stdout);
    let wanted = "data-said=\"code; prose; less code; Prompt 1 of 6: p0, code; Tokens that go to \
                  expert 0 of blocks.0: 3 of 3.\"";
    let body = dom.rfind("<body").map_or("", |at| &dom[at..dom.len().min(at + 400)]);
    assert!(dom.contains(wanted), "{body}");
    assert!(!dom.contains("data-failed"), "{body}");
}

#[test]
fn routing_stands_without_scripts() {
    let page = render(&fake::experts(8)).unwrap();
    let markup = &page[..page.find("<script").unwrap()];
    for id in ["tasks", "routing"] {
        assert!(markup.contains(&format!("<section id=\"{id}\"")), "{id}");
        assert!(markup.contains(&format!("href=\"#{id}\"")), "{id}");
    }
    // Load by layer, and two maps of each of two layers.
    assert_eq!(markup.matches("class=\"heat-table\"").count(), 1 + 2 * 2);
    assert!(markup.contains("aria-label=\"Router entropy over training"));
    assert!(markup.contains("<th scope=\"row\">running-sum-7</th>"));
    let json = embedded(&page);
    assert_eq!(json["routing"]["layers"][1]["points"]["step"][0], 50);
    let wide = render(&fake::experts(64)).unwrap();
    assert!(wide.contains("heat-table dense") && wide.contains("hidden-text"));

    // Fewer points than can be drawn, and values that are not finite.
    let mut data = fake::experts(4);
    let routing = data.routing.as_mut().unwrap();
    routing.layers[0].points.truncate(1);
    routing.layers[1].load[0] = f64::NAN;
    routing.layers[1].points[3].entropy = Some(f64::NAN);
    routing.layers[1].calibration = None;
    let page = render(&data).unwrap();
    assert!(!page[..page.find("<script").unwrap()].contains("NaN"));

    routing_mut(&mut data).task_shares.pop();
    let error = render(&data).unwrap_err().to_string();
    assert_eq!(error, "report: routing of blocks.0: 5 rows for 6 tasks");
    routing_mut(&mut data).task_shares.push(vec![1.0]);
    let error = render(&data).unwrap_err().to_string();
    assert_eq!(error, "report: routing of blocks.0: 1 shares for 4 experts");
}

fn routing_mut(data: &mut ReportData) -> &mut RoutingLayer {
    &mut data.routing.as_mut().unwrap().layers[0]
}

const HOSTILE: &str =
    "</script><script>alert(1)</script><img src=x onerror='\"=\"#FA0001\"'>&\u{0}";

/// A study in which every text is an attempt to leave its place.
fn hostile() -> ReportData {
    let mut data = fake::study();
    data.title = HOSTILE.into();
    data.subtitle = HOSTILE.into();
    data.notes = vec![HOSTILE.into()];
    data.config = format!("name = {HOSTILE}\n# {HOSTILE}\n[{HOSTILE}]\n");
    data.subtasks[0].name = HOSTILE.into();
    data.subtasks[1].symbol = HOSTILE.into();
    data.references[0].name = HOSTILE.into();
    for run in &mut data.runs {
        run.name.push_str(HOSTILE);
        run.parameter_layout = HOSTILE.into();
        for sample in &mut run.samples {
            sample.prediction = HOSTILE.into();
        }
    }
    data.runs[0].tasks =
        vec![TaskResult { name: HOSTILE.into(), kind: HOSTILE.into(), ..TaskResult::default() }];
    let mut routing = fake::experts(4).routing.unwrap();
    routing.set = HOSTILE.into();
    routing.tasks[0] = HOSTILE.into();
    routing.layers[0].name = HOSTILE.into();
    data.routing = Some(routing);
    data.windows[0].tokens[0].text = HOSTILE.into();
    data.windows[0].answer = HOSTILE.into();
    let environment = data.environment.as_mut().unwrap();
    environment.version = HOSTILE.into();
    environment.extra = vec![(HOSTILE.into(), HOSTILE.into())];
    data
}

#[test]
fn hostile_text_stays_text() {
    let data = hostile();
    let page = render(&data).unwrap();
    // Two script elements of ours, nothing else.
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
    assert!(!page.contains("<img") && !page.contains("alert(1)</script>"));
    assert_eq!(embedded(&page)["title"], HOSTILE);
    let plot = plot_svg(&data).unwrap().unwrap();
    assert!(!plot.contains("<script") && !plot.contains('\u{0}'));
}

#[test]
fn absent_parts_leave_no_empty_section() {
    let page = render(&fake::lstm()).unwrap();
    for id in ["results", "curves", "attention"] {
        assert!(page.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    for id in ["geometry", "config", "environment"] {
        assert!(!page.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    assert!(!page.contains("Attention maps"), "an LSTM has no attention");

    let page = render(&ReportData::default()).unwrap();
    assert!(!page.contains("<section") && !page.contains("<nav"));
    assert_eq!(embedded(&page)["runs"], serde_json::json!([]));

    let config = "steps = 1".to_owned();
    let page = render(&ReportData { config, ..ReportData::default() }).unwrap();
    assert!(page.contains("<section id=\"config\""));
}

#[test]
fn a_run_may_have_nothing_but_a_name() {
    let run = Run { name: "empty".into(), ..Run::default() };
    let data = ReportData { runs: vec![run], ..ReportData::default() };
    let page = render(&data).unwrap();
    assert!(page.contains("<section id=\"results\"") && !page.contains("<section id=\"curves\""));
    assert!(plot_svg(&data).unwrap().is_none());
}

#[test]
fn values_that_are_not_finite_become_gaps() {
    let mut data = fake::study();
    let run = &mut data.runs[0];
    for (index, value) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].into_iter().enumerate() {
        let point = &mut run.points[9 + 10 * index];
        point.accuracy = Some(value);
        point.train_loss = Some(value);
        point.subtask_accuracy = vec![value; 4];
    }
    run.scores.as_mut().unwrap().overall.accuracy = f64::NAN;
    run.samples[0].maps[0].weights[0] = f32::NAN;
    run.samples[0].candidates[0].probability = f64::NAN;
    run.histograms[0].attended[0] = f64::NAN;
    data.environment.as_mut().unwrap().seconds = f64::NAN;
    let page = render(&data).unwrap();
    let json = embedded(&page);
    assert_eq!(json["runs"][0]["points"]["accuracy"][8], serde_json::Value::Null);
    assert_eq!(json["runs"][0]["points"]["accuracy"][9], "NaN");
    assert_eq!(json["runs"][0]["samples"][0]["maps"][0]["weights"][0], serde_json::Value::Null);
    let markup = &page[..page.find("<script").unwrap()];
    assert!(!markup.contains("NaN") && !markup.contains("inf<"));

    for run in &mut data.runs {
        run.points.iter_mut().for_each(|point| point.accuracy = Some(f64::NAN));
    }
    let plot = plot_svg(&data).unwrap().expect("falls back to the loss");
    assert!(plot.contains("Validation loss"));
}

#[test]
fn contradictions_are_named() {
    let message = |change: &dyn Fn(&mut ReportData)| {
        let mut data = fake::study();
        change(&mut data);
        render(&data).unwrap_err().to_string()
    };
    let run = "report: run `cisformer, expressive`, seed 0: ";
    assert_eq!(
        message(&|data| data.runs[0].scores.as_mut().unwrap().subtasks.truncate(3)),
        format!("{run}3 scores for 4 subtasks")
    );
    assert_eq!(
        message(&|data| data.runs[0].points[9].subtask_accuracy.truncate(1)),
        format!("{run}step 200: 1 accuracies for 4 subtasks")
    );
    assert_eq!(message(&|data| data.runs[0].samples[0].window = 9), format!("{run}window 9 of 4"));
    assert_eq!(
        message(&|data| data.runs[0].samples[0].maps[1].weights.truncate(20)),
        format!("{run}layer 0, head 1: 20 attention weights for 16 tokens")
    );
    assert_eq!(
        message(&|data| data.runs[0].histograms[0].edges.truncate(3)),
        format!(
            "{run}layer 0, head 0: histogram needs rising edges, one more than counts; \
             attended as counts or empty: 3 edges, 48 counts, 48 attended"
        )
    );
    assert_eq!(
        message(&|data| data.windows[2].tokens[0].subtask = Some(4)),
        "report: window 2: subtask 4 of 4"
    );
    assert_eq!(
        message(&|data| data.windows[2].sources = vec![16]),
        "report: window 2: source 16 of 16 tokens"
    );
    assert_eq!(
        message(&|data| data.references[0].subtasks.truncate(2)),
        "report: reference `guessing from task and last token`: 2 scores for 4 subtasks"
    );
}

#[test]
fn unknown_token_counts_follow_the_neighbours() {
    let point = |(step, tokens)| Point { step, tokens, train_loss: Some(1.0), ..Point::default() };
    let points = [(0, 0), (5, 0), (10, 100), (15, 0), (20, 400), (30, 0)].map(point);
    let run = Run { points: points.into(), ..Run::default() };
    let json = serde_json::to_value(&run).unwrap();
    assert_eq!(json["points"]["tokens"], serde_json::json!([0, 50, 100, 150, 400, 600]));
    let run = Run { points: vec![point((5, 0))], ..Run::default() };
    let json = serde_json::to_value(&run).unwrap();
    assert_eq!(json["points"]["tokens"], serde_json::json!([0]));
}

#[test]
fn long_curves_are_thinned_evenly() {
    let points: Vec<Point> = (0..10_000)
        .map(|step| Point {
            step,
            train_loss: Some(1.0),
            accuracy: (step % 100 == 0).then_some(0.5),
            ..Point::default()
        })
        .collect();
    let kept = thinned(&points);
    assert!(kept.len() <= MAX_POINTS + 2, "{}", kept.len());
    assert_eq!((kept[0].step, kept[kept.len() - 1].step), (0, 9_999));
    assert_eq!(kept.iter().filter(|point| point.accuracy.is_some()).count(), 100);
    assert!(kept.windows(2).all(|pair| pair[0].step < pair[1].step));
    assert_eq!(thinned(&points[..300]).len(), 300);
}

#[test]
fn plot_is_one_svg_with_a_legend() {
    let data = fake::study();
    let plot = plot_svg(&data).unwrap().unwrap();
    assert!(plot.starts_with("<svg ") && plot.trim_end().ends_with("</svg>"));
    assert_eq!(plot.matches("<svg").count(), 1);
    for model in ["cisformer, expressive", "LSTM, hidden 32", "target"] {
        assert!(plot.contains(model), "{model}");
    }
    assert!(!plot.contains("var(--"), "a file has fixed colours");
}

#[test]
fn page_and_plot_have_the_same_colours() {
    let css = include_str!("assets/report.css");
    for (index, colour) in chart::PALETTE.iter().enumerate() {
        let line = format!("--series-{index}: #{:02x}{:02x}{:02x};", colour.0, colour.1, colour.2);
        assert!(css.contains(&line), "{line}");
    }
}

/// Writes the made-up pages to the directory in `REPORT_DIR`, to look at.
#[test]
#[ignore = "writes files to look at"]
fn write_samples() {
    let dir = std::path::PathBuf::from(std::env::var("REPORT_DIR").expect("REPORT_DIR"));
    std::fs::write(dir.join("study.html"), render(&fake::study()).unwrap()).unwrap();
    std::fs::write(dir.join("lstm.html"), render(&fake::lstm()).unwrap()).unwrap();
    std::fs::write(dir.join("experts.html"), render(&fake::experts(8)).unwrap()).unwrap();
    std::fs::write(dir.join("wide.html"), render(&fake::experts(64)).unwrap()).unwrap();
    std::fs::write(dir.join("hostile.html"), render(&hostile()).unwrap()).unwrap();
    let mut crowd = fake::study();
    for copy in 0..2 {
        for mut run in fake::study().runs {
            run.name = format!("{}, variant {copy}", run.name);
            crowd.runs.push(run);
        }
    }
    std::fs::write(dir.join("crowd.html"), render(&crowd).unwrap()).unwrap();
    let mut gaps = fake::study();
    for run in &mut gaps.runs {
        run.points[99..130].iter_mut().for_each(|point| point.accuracy = Some(f64::NAN));
    }
    std::fs::write(dir.join("gaps.html"), render(&gaps).unwrap()).unwrap();
    std::fs::write(dir.join("plot.svg"), plot_svg(&fake::study()).unwrap().unwrap()).unwrap();
}
