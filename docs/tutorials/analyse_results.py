"""Analyse the records of a suite with pandas: as a script, or cell by cell in an editor that supports `# %%`."""

# %% Load every run of a suite.
import bench

results = bench.load_results("results/reference/nano")
print(results.runs[["row", "method", "kl", "seed", "status", "updates"]].to_string(index=False))

# %% The table of the suite: means, 95 % intervals, paired differences to the base.
table = results.table()
columns = ["row", "overall", "overall_lo", "overall_hi", "overall_delta", "overall_delta_lo", "overall_delta_hi"]
print(table[columns].round(2).to_string(index=False))

# %% One number per video: Overall = VQ + MQ + TA, and the gold scores beside it.
scores = results.scores.fillna({"seed": -1})  # the base model is not trained, so it has no seed
wide = scores.pivot_table(index=["row", "seed", "prompt", "video"], columns="metric", values="value").reset_index()
wide["overall"] = wide["VQ"] + wide["MQ"] + wide["TA"]
wide["gold"] = wide["gold_VQ"] + wide["gold_MQ"] + wide["gold_TA"]

# %% Which prompts gain, and which lose? Means over videos and seeds, less the base.
by_prompt = wide.pivot_table(index="prompt", columns="row", values="overall")
gain = by_prompt.drop(columns="base").sub(by_prompt["base"], axis=0)
print(gain.describe().round(2).to_string())
print("smallest gains of sage_grpo-dual:", gain["sage_grpo-dual"].nsmallest(3).round(2).to_dict())

# %% How far do the seeds differ? One mean per training run.
trained = wide[wide["row"] != "base"]
by_seed = trained.pivot_table(index="seed", columns="row", values="overall")
print(by_seed.round(2).to_string())

# %% Do the gold scores rise with the reward? Correlation of the gains over prompts.
gold = wide.pivot_table(index="prompt", columns="row", values="gold")
gold_gain = gold.drop(columns="base").sub(gold["base"], axis=0)
print(gain.corrwith(gold_gain).round(2).rename("correlation of gains").to_string())

# %% Learning curves: the training reward, smoothed over 5 updates, mean over seeds.
curves = results.curves.sort_values(["row", "seed", "update"]).reset_index(drop=True)
runs = curves.groupby(["row", "seed"])["reward"]
curves["smooth"] = runs.transform(lambda reward: reward.rolling(5, center=True, min_periods=1).mean())
means = curves.pivot_table(index="update", columns="row", values="smooth")
print(means.iloc[[0, -1]].round(2).to_string())

# %% A figure; in a script, save it with `axes.figure.savefig("reward.png")`.
axes = means.plot(xlabel="update", ylabel="training reward", title="Training videos: not the order of the table")
