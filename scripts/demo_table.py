#!/usr/bin/env python3
"""demo_table.py REPORT.json: the report's main numbers as a table for the terminal."""
import json
import sys


def main():
    report = json.load(open(sys.argv[1]))
    before, after = report["before"], report["after"]

    def row(label, a, b):
        print(f"{label:<34}{a:>14}{b:>14}")

    def number(model, key, form, scale=1.0):
        return form.format(model[key] * scale) if key in model else ""

    row("", "original", "compressed")
    row("file, bytes", f"{before['file_bytes']:,}", f"{after['file_bytes']:,}")
    row("memory of the weights, bytes", number(before, "loaded_bytes", "{:,.0f}"), number(after, "loaded_bytes", "{:,.0f}"))
    row("bits per weight", number(before, "bits_per_weight", "{:.2f}"), number(after, "bits_per_weight", "{:.2f}"))
    for text in report["texts"]:
        row(f"perplexity, {text['name']}", number(text, "perplexity_before", "{:.2f}"), number(text, "perplexity_after", "{:.2f}"))
        if "kl" in text:
            row("  mean KL, same first choice", "", f"{text['kl']:.3f}, {100 * text.get('top1', 0):.0f} %")
    if "seconds" in report:
        row("time to compress", "", f"{report['seconds']:.0f} s")
    if "peak_memory" in report:
        row("peak memory", "", f"{report['peak_memory'] / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
