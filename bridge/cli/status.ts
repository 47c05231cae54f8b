import type { HostView } from '../fleet/host-view.ts';
import type { Fleet } from '../fleet/fleet.ts';

/** How long the links may take; a host that is not there by then is shown as such. */
const SETTLE_MS = 5_000;

export type StatusOptions = { isJson: boolean; columns: number | undefined; write: (text: string) => void };

/** One screen: hosts, their GPUs with VRAM, their models with state. True if a host is connected. */
export async function printStatus(fleet: Fleet, { isJson, columns, write }: StatusOptions): Promise<boolean> {
  await fleet.settled({ signal: AbortSignal.timeout(2 * SETTLE_MS), withinMs: SETTLE_MS });
  const hosts = fleet.hosts();
  if (isJson) write(`${JSON.stringify({ schema: 1, hosts: hosts.map(hostJson) }, null, 2)}\n`);
  else write(`${statusLines(hosts, columns).join('\n')}\n`);
  return hosts.some(({ link }) => link.kind === 'up');
}

/** The lines of the screen. Where its width is known, sentences are wrapped and the rest is cut, so that no line wraps. */
export function statusLines(hosts: readonly HostView[], columns?: number): string[] {
  if (hosts.length === 0) return wrap('No host is configured. Add one under `hosts` in bridge.yaml.', { columns });
  return hosts.flatMap((host) => [
    clip(hostLine(host), columns),
    ...problemLines(host, columns),
    ...gpuLines(host, columns),
    ...modelLines(host, columns),
  ]);
}

function hostLine({ name, url, link, snapshot }: HostView): string {
  const simulated = snapshot?.isSimulated === true ? ', simulated' : '';
  const draining = snapshot?.isDraining === true ? ', draining' : '';
  switch (link.kind) {
    case 'up':
      return `${name}  ${url}  connected, ${link.latencyMs.toFixed(0)} ms${simulated}${draining}`;
    case 'connecting':
      return `${name}  ${url}  connecting`;
    case 'down':
      return `${name}  ${url}  not connected: ${link.error.code}`;
  }
}

function problemLines({ link, snapshot }: HostView, columns: number | undefined): string[] {
  const problems = link.kind === 'down' ? [link.error.message] : (snapshot?.problems ?? []);
  return problems.flatMap((problem) => wrap(problem, { columns, indent: '  ' }));
}

function gpuLines({ snapshot }: HostView, columns: number | undefined): string[] {
  return (snapshot?.gpus ?? []).flatMap((gpu) => {
    const others = gpu.foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0);
    const free = gpu.freeMiB === null ? '?' : gib(gpu.freeMiB);
    const total = gpu.totalMiB === null ? '?' : gib(gpu.totalMiB);
    const words = [gpu.health === 'ok' ? [] : gpu.health, gpu.isDegraded ? 'degraded' : []].flat();
    const ram = gpu.isUnified === true ? ' of host RAM' : '';
    const vram = `ours ${gib(gpu.oursMiB)}, others ${gib(others)}, free ${free} of ${total} GiB${ram}`;
    const line = [`  GPU ${gpu.index}`, gpu.name, vram, ...words].join('  ');
    const notes = [gpu.note, gpu.degraded, gpu.unlisted].flatMap((note) => note ?? []);
    return [clip(line, columns), ...notes.flatMap((note) => wrap(note, { columns, indent: '    ' }))];
  });
}

function modelLines({ snapshot }: HostView, columns: number | undefined): string[] {
  return (snapshot?.models ?? []).flatMap((model) => {
    const running = model.slots.filter(({ phase }) => phase === 'running').length;
    const jobs = running === 0 ? '' : `, ${running} running`;
    const line = `  ${model.alias}  ${model.state}${jobs}, ${gib(model.heldMiB)} GiB  ${model.model}`;
    return [clip(line, columns), ...detailLines(model.detail ?? '', columns)];
  });
}

/** Of a log in the words of a failure the last line is enough here; on the host, `gantry-agent logs` has all. */
function detailLines(detail: string, columns: number | undefined): string[] {
  const [said = '', ...written] = detail.trim().split('\n');
  return [said, ...written.slice(-1)].flatMap((text) => wrap(text, { columns, indent: '    ' }));
}

function hostJson({ name, url, link, snapshot, statusAgeMs }: HostView) {
  return {
    name,
    url,
    link: link.kind,
    ...(link.kind === 'up' && { latencyMs: link.latencyMs }),
    ...(link.kind === 'down' && { error: { code: link.error.code, message: link.error.message } }),
    ...(snapshot !== undefined && { statusAgeMs, snapshot }),
  };
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(1);
}

/** Words on lines of at most so many columns; a longer word has a line of its own, cut. */
function wrap(text: string, { columns, indent = '' }: { columns: number | undefined; indent?: string }): string[] {
  const lines: string[] = [];
  let line = indent;
  for (const word of harmless(text).split(/\s+/).filter(Boolean)) {
    const longer = line === indent ? `${indent}${word}` : `${line} ${word}`;
    if (columns !== undefined && longer.length > columns && line !== indent) {
      lines.push(line);
      line = `${indent}${word}`;
    } else line = longer;
  }
  return [...lines, ...(line === indent ? [] : [line])].map((one) => clip(one, columns));
}

function clip(line: string, columns: number | undefined): string {
  const clean = harmless(line);
  return columns === undefined || clean.length <= columns ? clean : `${clean.slice(0, columns - 1)}…`;
}

/** Control characters of a host's text must not move the terminal's cursor. */
function harmless(text: string): string {
  return text.replace(/\p{Cc}/gu, ' ');
}
