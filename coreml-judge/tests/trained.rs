//! The committed judging model, on passages of documents that it was not trained on.

use std::path::PathBuf;

use coreml_client::ModelClient;
use coreml_judge::{Constitution, Finding, JudgeError, Rule, Task, TrainedJudge, Tribunal};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    rule: String,
    text: String,
    kept: bool,
    broken: f32,
}

fn models() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../models").into()
}

async fn head(client: &ModelClient) -> TrainedJudge {
    let model_ref = client
        .load_model_async(models().join("judge/judge.mlpackage"))
        .await
        .expect("the committed model loads");
    TrainedJudge::new(client, model_ref).expect("it is a judging head")
}

#[tokio::test]
async fn it_says_what_was_recorded_and_beats_the_majority() {
    let client = ModelClient::builder().build();
    let judge = head(&client).await;
    let text = std::fs::read_to_string(models().join("judge/held_out.json")).unwrap();
    let recorded: Vec<Recorded> = serde_json::from_str(&text).unwrap();
    for rule in judge.rules() {
        let tribunal =
            Tribunal::new(Constitution::new("One", vec![rule.clone()]).unwrap()).with(judge.clone());
        let own: Vec<_> = recorded.iter().filter(|one| one.rule == rule.id).collect();
        let (mut right, mut kept, mut compared) = (0, 0, 0);
        for one in &own {
            kept += usize::from(one.kept);
            right += usize::from((one.broken < 0.5) == one.kept);
            let task = Task::new("", one.text.as_str());
            // The recorded probability is of the whole text.
            if task.passages().len() == 1 {
                let verdict = tribunal.deliberate(&task).await.unwrap();
                let found = verdict.rules[0].distribution.of(Finding::Broken);
                assert!((found - one.broken).abs() < 0.02, "{found}, recorded {}: {}", one.broken, one.text);
                compared += 1;
            }
        }
        let accuracy = right as f32 / own.len() as f32;
        let majority = kept.max(own.len() - kept) as f32 / own.len() as f32;
        assert!(compared > own.len() / 2, "{compared} of {} {}", own.len(), rule.id);
        assert!(accuracy > majority + 0.2, "{}: {accuracy}, majority {majority}", rule.id);
    }
}

#[tokio::test]
async fn it_abstains_from_what_it_was_not_trained_for() {
    let client = ModelClient::builder().build();
    let judge = head(&client).await;
    let id = judge.rules()[0].id.clone();
    let rules = vec![Rule::new(id, "Something else."), Rule::new("unheard", "It is unheard of.")];
    let tribunal = Tribunal::new(Constitution::new("Others", rules).unwrap()).with(judge.clone());
    let verdict = tribunal.deliberate(&Task::new("", "This is a sentence like any other.")).await.unwrap();
    for rule in verdict.rules {
        assert_eq!((rule.finding, rule.opinions[0].finding), (Finding::Unclear, None));
    }
    let known = Constitution::new("Known", judge.rules().to_vec()).unwrap();
    let verdict = Tribunal::new(known).with(judge).deliberate(&Task::new("", "Short.")).await.unwrap();
    assert!(verdict.rules.iter().all(|rule| rule.finding == Finding::Unclear));
}

#[tokio::test]
async fn another_model_is_no_head() {
    let client = ModelClient::builder().build();
    let digits = client.load_model_async(models().join("digits/digits.mlpackage")).await.unwrap();
    let error = TrainedJudge::new(&client, digits).unwrap_err();
    assert!(matches!(error, JudgeError::UnknownHead(_)) && error.to_string().contains("`text`"), "{error}");
}
