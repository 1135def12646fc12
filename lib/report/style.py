"""How the page of a report looks: light and dark, from 390 pixels, without anything from elsewhere."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d1f23; --soft: #5b6069; --line: #dcdcd6; --tint: #f3f3ee; --link: #1a4f8b;
  --better: #0b5ea8; --better-tint: #e0edf8; --worse: #a34500; --worse-tint: #fbe9dc;
  --equivalent: #2f5d50; --equivalent-tint: #e0efe9; --undecided: #55595f; --undecided-tint: #ebebe7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e4e5e7; --soft: #a2a7af; --line: #33373d; --tint: #1e2125; --link: #8fbcf0;
    --better: #8cc4ff; --better-tint: #17304a; --worse: #ffb27d; --worse-tint: #46260f;
    --equivalent: #93d3bd; --equivalent-tint: #173a30; --undecided: #bfc3c9; --undecided-tint: #2b2f34;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Iowan Old Style", "Palatino Linotype", Palatino, "Source Serif 4", Georgia, "Noto Serif", serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; font-weight: 600; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2rem;
  margin: 1.5rem 0;
}
p, li { max-width: 46rem; overflow-wrap: anywhere; }
p { margin: .6rem 0; }
.about, .note, figcaption { color: var(--soft); font-size: .92rem; }
.warning { border-left: 3px solid var(--worse); padding: .4rem .9rem; background: var(--worse-tint); }
nav { font: .85rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; margin: 1rem 0 0; }
nav a { color: var(--link); text-decoration: none; margin-right: 1rem; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
a:focus-visible, .wide:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
ul.sentences { list-style: none; margin: .75rem 0; padding: 0; }
ul.sentences li {
  display: grid; grid-template-columns: 8.2rem 1fr; gap: .75rem; padding: .3rem 0; align-items: baseline;
  max-width: none;
}
ol li, ul li { margin: .3rem 0; }
.word {
  display: inline-block; font: 600 .78rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  padding: .1rem .55rem; border-radius: 1rem; white-space: nowrap;
  color: var(--undecided); background: var(--undecided-tint);
}
.word.better { color: var(--better); background: var(--better-tint); }
.word.worse, .word.diverged { color: var(--worse); background: var(--worse-tint); }
.word.equivalent { color: var(--equivalent); background: var(--equivalent-tint); }
.wide { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 4px; }
table {
  border-collapse: collapse; width: 100%;
  font: .84rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
th, td { padding: .4rem .7rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; background: var(--tint); }
th.name, td.name { text-align: left; }
td.long { white-space: normal; min-width: 14rem; max-width: 30rem; overflow-wrap: anywhere; }
td.again { border-top-color: transparent; }
tr > :first-child { padding-left: 1rem; }
.interval { display: inline-block; vertical-align: middle; width: 11rem; height: 1.4rem; overflow: visible; }
.interval .zero { stroke: var(--soft); stroke-width: 1; }
.interval .margin { fill: var(--tint); }
.interval .bar { stroke: currentColor; stroke-width: 2; }
.interval .dot { fill: currentColor; }
.interval.better { color: var(--better); } .interval.worse { color: var(--worse); }
.interval.equivalent { color: var(--equivalent); } .interval { color: var(--undecided); }
figure { margin: 0; }
figure h3 { margin: 0 0 .5rem; }
figcaption { max-width: 36rem; margin-top: .5rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 46rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 36rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  ul.sentences li { grid-template-columns: 1fr; gap: .15rem; padding: .45rem 0; }
}
@media print { .wide { overflow: visible; border: 0; } nav { display: none; } }
"""
