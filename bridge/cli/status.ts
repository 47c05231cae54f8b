import { EXIT } from '../../shared/exit-codes.ts';
import { clipped, gib, wrapped } from '../../shared/screen-text.ts';
import type { HostView } from '../fleet/host-view.ts';
import type { Session } from '../session.ts';
import { NO_HOST } from './no-host.ts';
import { printJson, printLines } from './screen.ts';

/** `gantry status`: hosts, their GPUs with VRAM, their models with state, on one screen. */
export async function showStatus(session: Session): Promise<number> {
  const { screen } = session;
  const hosts = (await session.hosts()).hosts();
  if (screen.isJson) printJson(screen, { schema: 1, hosts: hosts.map(hostJson) });
  else printLines(screen, statusLines(hosts, screen.out.columns));
  return hosts.some(({ link }) => link.kind === 'up') ? EXIT.ok : EXIT.unavailable;
}

/** The lines of the screen. Where its width is known, sentences are wrapped and the rest is cut, so that no line wraps. */
export function statusLines(hosts: readonly HostView[], columns?: number): string[] {
  if (hosts.length === 0) return wrapped(NO_HOST, { columns });
  return hosts.flatMap((host) => [
    clipped(hostLine(host), columns),
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
  return problems.flatMap((problem) => wrapped(problem, { columns, indent: '  ' }));
}

function gpuLines({ snapshot }: HostView, columns: number | undefined): string[] {
  return (snapshot?.gpus ?? []).flatMap((gpu) => {
    const others = gpu.foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0);
    const free = gib(gpu.freeMiB);
    const total = gib(gpu.totalMiB);
    const words = [gpu.health === 'ok' ? [] : gpu.health, gpu.isDegraded ? 'degraded' : []].flat();
    const ram = gpu.isUnified === true ? ' of host RAM' : '';
    const vram = `ours ${gib(gpu.oursMiB)}, others ${gib(others)}, free ${free} of ${total} GiB${ram}`;
    const line = [`  GPU ${gpu.index}`, gpu.name, vram, ...words].join('  ');
    const notes = [gpu.note, gpu.degraded, gpu.unlisted].flatMap((note) => note ?? []);
    return [clipped(line, columns), ...notes.flatMap((note) => wrapped(note, { columns, indent: '    ' }))];
  });
}

function modelLines({ snapshot }: HostView, columns: number | undefined): string[] {
  return (snapshot?.models ?? []).flatMap((model) => {
    const running = model.slots.filter(({ phase }) => phase === 'running').length;
    const jobs = running === 0 ? '' : `, ${running} running`;
    const line = `  ${model.alias}  ${model.state}${jobs}, ${gib(model.heldMiB)} GiB  ${model.model}`;
    return [clipped(line, columns), ...detailLines(model.detail ?? '', columns)];
  });
}

/** Of a log in the words of a failure the last line is enough here; on the host, `gantry-agent logs` has all. */
function detailLines(detail: string, columns: number | undefined): string[] {
  const [said = '', ...written] = detail.trim().split('\n');
  return [said, ...written.slice(-1)].flatMap((text) => wrapped(text, { columns, indent: '    ' }));
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
