"""A pytest plugin: what the tests counted with ``record_property``, summed up and printed at the end as a table.

    FAULTS=long PYTHONPATH=tests/jobs python -m pytest -n 2 -p fault_figures tests/scenarios/test_faults.py

Names that begin with "largest" are not summed up: the largest counts.
"""


def pytest_terminal_summary(terminalreporter):
    figures = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    before = figures.get(name, 0)
                    figures[name] = max(before, value) if name.startswith("largest") else before + value
    terminalreporter.write_sep("=", "figures")
    terminalreporter.write_line("| what | count |\n|---|---|")
    for name in sorted(figures):
        terminalreporter.write_line(f"| {name} | {figures[name]} |")
