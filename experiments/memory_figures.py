def save(workdir, rows, groups, task):
    out = []
    for r in rows:
        out.append(
            f"{r['cure']} T={r['length']} lr={r['learning_rate']:g} seed={r['seed']} solved={r['solved']} wrong={r['wrong']} test={r['test_loss']} steps={r['steps']} div={r['diverged_step']} slope {r['slope_start']:.3f} -> {r['slope_end'] or float('nan'):.3f} {r['verdict_start']}->{r['verdict_end']}\n"
        )
    return "".join(out)
