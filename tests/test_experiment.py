def test_smoke(tiny_config):
    from sae_faithful import ExperimentConfig, run
    c = ExperimentConfig.from_dict({**tiny_config, "evaluators":["shared_features",{"fake_features":{"n_tokens":1000}},{"reconstruction":{"ce_tokens":200}}]})
    folder = run(c)
    print(folder.report_file.read_text())
    run(c)
def test_smoke_tl(tiny_config, tiny_hooked):
    from sae_faithful import ExperimentConfig, run
    c = ExperimentConfig.from_dict({**tiny_config, "model_name":"tiny","model_class_name":"HookedTransformer","hook_name":"blocks.0.hook_resid_post","evaluators":["shared_features",{"fake_features":{"n_tokens":1000}},{"reconstruction":{"ce_tokens":200}}]})
    folder = run(c, override_model=tiny_hooked)
    print(folder.report_file.read_text())
