"""index.html of a rehearsal: its stages, steps, logs, summaries and reports, on one page.

One file that asks for nothing else, to be read, shown or printed without what it tells of. What
others wrote is text in it; a report is in a frame that may run nothing.
"""
import base64
import html
import json
import os
import re
import string

LINES_SHOWN = 300
SIGNS = {'succeeded': '✓', 'failed': '✕', 'canceled': '!', 'skipped': '–'}
REPORTS = ('.html', '.png')

PAGE = string.Template('''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>$title</title>
<style>
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 66rem; color: #1d2733;
  background: #fff;
  font: 16px/1.5 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25 }
h2 { margin: 2rem 0 .6rem; font-size: 1.25rem; border-top: 1px solid #dde3e8; padding-top: 1rem }
h3 { margin: 1rem 0 .3rem; font-size: 1rem }
.card h3 { margin: .5rem 0 .2rem; color: #5a6672; font-weight: 500 }
a { color: #14568c }
p { margin: .3rem 0 .6rem }
.quiet { color: #5a6672; font-size: .88rem; font-weight: 400 }
.sign { display: inline-block; width: 1.25rem; height: 1.25rem; border-radius: 50%; color: #fff;
  background: #5a6672; text-align: center; margin-right: .5rem;
  font: bold .8rem/1.25rem sans-serif }
.succeeded .sign { background: #2b7d3b } .failed .sign { background: #b3261e }
.canceled .sign { background: #8a5a00 }
.stages { display: flex; flex-wrap: wrap; gap: .8rem 1.6rem; padding: 0; list-style: none;
  overflow: hidden }
.stages > li { flex: 1 1 10rem; position: relative; border: 1px solid #c9d3db; background: #f6f8fa;
  border-left: 4px solid #5a6672; padding: .6rem .8rem; break-inside: avoid }
.stages .succeeded { border-left-color: #2b7d3b } .stages .failed { border-left-color: #b3261e }
.stages .canceled { border-left-color: #8a5a00 } .stages .skipped { color: #5a6672 }
.stages > li + li::before { content: ''; position: absolute; left: -1.7rem; top: 1.6rem;
  width: 1.4rem; border-top: 2px solid #8b97a3 }
.stages a { font-weight: 600; text-decoration: none }
.stages ul { margin: .3rem 0 0; padding: 0; list-style: none; font-size: .85rem;
  overflow-wrap: anywhere }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem),
  1fr)) }
.card { border: 1px solid #c9d3db; padding: .2rem 1rem .6rem; break-inside: avoid; min-width: 0 }
.card table { border-collapse: collapse; width: 100%; font-size: .9rem }
.card td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #dde3e8; vertical-align: top;
  overflow-wrap: anywhere }
.card td:first-child { color: #5a6672; width: 8rem; overflow-wrap: normal }
details { margin: .15rem 0 }
summary { cursor: pointer }
summary .quiet { float: right }
details details { margin-left: 1.2rem } details .skipped { margin-left: 2.2rem }
pre { margin: .3rem 0 .8rem; padding: .6rem .8rem; background: #f3f6f9; overflow: auto;
  max-height: 30rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8rem/1.45 Menlo, Consolas, monospace }
img { max-width: 100% }
iframe { width: 100%; height: 46rem; border: 1px solid #c9d3db }
@media (max-width: 40rem) { .stages > li { flex-basis: 100% }
  .stages > li + li::before { display: none } }
@media print { body { padding: 0; font-size: 10pt; max-width: none } pre { max-height: none } }
</style>
</head>
<body>
<h1>$title</h1>
<p class="$result"><span class="sign">$sign</span><b>$result</b>, $seconds s. $about</p>
$runs
</body>
</html>
''')


def escape(text):
    """Text for HTML, in element or attribute."""
    return html.escape(''.join(char if char.isprintable() or char in '\n\t' else '?'
                               for char in str(text)))


def sign(result):
    return f'<span class="sign">{SIGNS.get(result, "?")}</span>'


def worst(results):
    return next((one for one in ('canceled', 'failed') if one in results), 'succeeded')


def inline(text):
    """A line of Markdown as HTML: escapes, entities, code, bold and links to https."""
    kept = []

    def keep(markup):
        kept.append(markup)
        return f'\0{len(kept) - 1}\0'

    text = re.sub(r'(?<!\\)`([^`]+)`',
                  lambda found: keep(f'<code>{escape(found.group(1))}</code>'), text)
    text = re.sub(r'\\([!-/:-@\[-`{-~])', lambda found: keep(escape(found.group(1))), text)
    text = re.sub(r'&(amp|lt|gt);', lambda found: keep(found.group()), text)
    text = re.sub(r'(?<!!)\[([^\[\]]*)\]\((https://[^\s()]+)\)', lambda found: keep(
        f'<a href="{escape(found.group(2))}">') + found.group(1) + keep('</a>'), text)
    text = re.sub(r'\*\*(.+?)\*\*', lambda found: keep('<b>') + found.group(1) + keep('</b>'), text)
    return re.sub('\0([0-9]+)\0', lambda found: kept[int(found.group(1))],
                  ''.join(part if part[:1] == '\0' else escape(part)
                          for part in re.split('(\0[0-9]+\0)', text)))


def markdown(text):
    """The Markdown that scripts/summary.py writes as HTML: headings, tables, lists, lines."""
    parts = []
    for line in text.replace('\0', '').splitlines():
        heading = re.match('#+ +(.*)', line)
        if heading:
            parts.append(f'<h3>{inline(heading.group(1))}</h3>')
        elif re.match(r'\|[-| ]+$', line):
            continue
        elif line.startswith('|'):
            cells = re.split(r'(?<!\\)\|', line)[1:-1]
            parts.append('<tr>' + ''.join(
                f'<td>{inline(cell.strip())}</td>' for cell in cells) + '</tr>')
        elif line.startswith('- '):
            parts.append(f'<li>{inline(line[2:])}</li>')
        elif line.strip():
            parts.append(f'<p>{inline(line)}</p>')
    result = '\n'.join(parts)
    for tag, around in (('tr', 'table'), ('li', 'ul')):
        result = re.sub(rf'(<{tag}>.*?</{tag}>)(\n<{tag}>.*?</{tag}>)*',
                        lambda found: f'<{around}>{found.group()}</{around}>', result)
    return result


def log_of(path):
    """The lines of a log as HTML; of a long one the beginning and the end."""
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    half = LINES_SHOWN // 2
    if len(lines) > LINES_SHOWN:
        left_out = len(lines) - 2 * half
        lines = lines[:half] + [f'... {left_out:,} lines, all of it in {path.name} ...'] + \
            lines[-half:]
    return f'<pre>{escape(chr(10).join(lines)) or "(nothing)"}</pre>'


def step_of(step, folder):
    """A step as HTML; one that did not succeed is open."""
    head = sign(step['result']) + escape(step['title'])
    if 'log' not in step:
        return f'<div class="skipped">{head} <span class="quiet">skipped</span></div>'
    opened = '' if step['result'] == 'succeeded' else ' open="open"'
    return (f'<details class="{step["result"]}"{opened}><summary>{head}<span class="quiet">'
            f'{step["seconds"]:.1f} s</span></summary>{log_of(folder / step["log"])}</details>')


def jobs_of(folder):
    """{folder of a job or hook: its steps} below that of a stage, in the order of their ends."""
    found = list(folder.glob('steps.json')) + list(folder.glob('*/steps.json'))
    return {path.parent: json.loads(path.read_text(encoding='utf-8'))
            for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)}


def box_of(row, anchor):
    """A stage, (title, result, seconds, produced), as a box of the row of stages."""
    title, result, seconds, produced = row
    # Of an artifact of many files the step's log has the names.
    short = [re.sub(r'^(artifact \S+) \((.*, .*)\)$', lambda found: f"{found.group(1)}, "
                    f"{found.group(2).count(',') + 1} files", line) for line in produced]
    lines = ''.join(f'<li>{escape(line)}</li>' for line in short)
    took = '' if result == 'skipped' else f', {seconds:.1f} s'
    return (f'<li class="{result}"><a href="#{anchor}">{sign(result)}{escape(title)}</a>'
            f'<div class="quiet">{result}{took}</div><ul>{lines}</ul></li>')


def report_of(path):
    """A page or picture that a job left in its outputs, as HTML."""
    name = escape(path.name)
    if path.suffix == '.png':
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<p><img alt="{name}" src="data:image/png;base64,{data}"/></p>'
    text = html.escape(path.read_text(encoding='utf-8', errors='replace'))
    return (f'<details><summary>{name}</summary><iframe title="{name}" sandbox="" '
            f'srcdoc="{text}"></iframe></details>')


def run_of(folder, rows):
    """A run of a pipeline, whose folder this is, by its stages."""
    boxes, cards, reports, steps = [], [], {}, []
    for number, row in enumerate(rows, 1):
        anchor = f'{folder.name}-{number}'
        boxes.append(box_of(row, anchor))
        steps.append(f'<h3 id="{anchor}" class="{row[1]}">{sign(row[1])}{escape(row[0])}</h3>')
        for stage in folder.glob(f'{number}-*'):
            for job, done in jobs_of(stage).items():
                if job != stage:
                    steps.append(f'<p class="quiet">{escape(job.name)}</p>')
                for step in done:
                    steps.append(step_of(step, job))
                    cards += [f'<div class="card">{markdown(text)}</div>'
                              for text in step.get('summaries', {}).values()]
                # What comes back with an artifact is the same once more, and a dict keeps one.
                for path in sorted((job / 'outputs').glob('*.*')):
                    if path.suffix in REPORTS:
                        reports[report_of(path)] = path
    result, seconds = worst([row[1] for row in rows]), sum(row[2] for row in rows)
    opened = '' if result == 'succeeded' else ' open="open"'
    return '\n'.join([
        f'<h2 class="{result}">{sign(result)}{escape(folder.name)} <span class="quiet">{result}, '
        f'{seconds:.0f} s</span></h2>', '<ol class="stages">', *boxes, '</ol>',
        '<div class="cards">', *cards, '</div>', *reports,
        f'<details{opened}><summary>Steps and their logs</summary>', *steps, '</details>'])


def write(out, rows):
    """Write OUT/index.html about the runs so far, rows of (run, stage, result, seconds, produced).

    The newest comes first.
    """
    said = (out / 'rehearsal.log').read_text(encoding='utf-8').splitlines()[0]
    title, _, about = said.partition(' on this machine. ')
    runs = {}
    for label, *row in rows:
        runs.setdefault(label, []).append(row)
    result = worst([row[2] for row in rows])
    text = PAGE.substitute(
        title=escape(title.replace('REHEARSAL', 'Rehearsal')), about=escape(about),
        result=result, sign=SIGNS[result], seconds=f'{sum(row[3] for row in rows):.0f}',
        runs='\n'.join(run_of(out / label, runs[label]) for label in reversed(list(runs))))
    new = out / '.index.html.new'
    new.write_text(text, encoding='utf-8')
    os.replace(str(new), str(out / 'index.html'))
