import type { Tool } from '../../bridge/mcp/tool.ts';

export type Content = Awaited<ReturnType<Tool['call']>>['content'][number];

/** One red dot. */
export const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC';

/** The same, as gantry shows previews. */
export const JPEG =
  '/9j/2wBDAFA3PEY8MlBGQUZaVVBfeMiCeG5uePWvuZHI////////////////////////////////////////////////////2wBD' +
  'AVVaWnhpeOuCguv/////////////////////////////////////////////////////////////////////////wAARCAABAAED' +
  'AREAAhEBAxEB/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/xAAVAQEBAAAAAAAAAAAAAAAAAAAD' +
  'BP/EABQRAQAAAAAAAAAAAAAAAAAAAAD/2gAMAwEAAhEDEQA/ACGsf//Z';

/** A header and two samples of silence. */
export const WAV = wav().toString('base64');

export function text(value: string): Content & { type: 'text' } {
  return { type: 'text', text: value };
}

export function image(): Content & { type: 'image' } {
  return { type: 'image', data: PNG, mimeType: 'image/png' };
}

export function resource(uri: string, mimeType: string, value: string): Content & { type: 'resource' } {
  return { type: 'resource', resource: { uri, mimeType, text: value } };
}

function wav(): Buffer {
  const samples = Buffer.alloc(4);
  const head = Buffer.alloc(44);
  head.write('RIFF', 0, 'latin1');
  head.writeUInt32LE(36 + samples.length, 4);
  head.write('WAVEfmt ', 8, 'latin1');
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20); // PCM
  head.writeUInt16LE(1, 22); // one channel
  head.writeUInt32LE(8_000, 24);
  head.writeUInt32LE(16_000, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write('data', 36, 'latin1');
  head.writeUInt32LE(samples.length, 40);
  return Buffer.concat([head, samples]);
}
