"""One self-contained HTML page about a run (`multimodal.report.page.write_report`)."""
