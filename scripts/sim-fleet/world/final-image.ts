import { createHash } from 'node:crypto';
import { world } from './world.ts';

/** In the place of agent/job/final-image.ts: small bytes that begin like a PNG and say whose they are. */

const MAGIC = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1');
const DIGEST_CHARS = 64;

type Origin = {
  job: { jobId: string; attempt: number; request: { format: 'png' | 'jpg' | 'webp' } };
  hostname: string;
};

export async function makeFinalImage(answer: Buffer, { job, hostname }: Origin): Promise<object> {
  const { jobId, attempt } = job;
  const text = JSON.stringify({ jobId, attempt, hostname, at: world().nowMs });
  const head = Buffer.concat([MAGIC, Buffer.from(`${text}\n`), answer]);
  const image = Buffer.concat([head, Buffer.from(digestOf(head))]);
  const sha256 = createHash('sha256').update(image).digest('hex');
  const preview = Buffer.from(`preview of ${jobId}`);
  return { image, preview, sha256, width: 64, height: 64, format: 'png', notes: [] };
}

/** Whose image these bytes are; undefined where they are not a whole one. */
export function ownerOf(bytes: Buffer): { jobId: string; attempt: number; hostname: string } | undefined {
  if (bytes.length < MAGIC.length + DIGEST_CHARS || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const head = bytes.subarray(0, bytes.length - DIGEST_CHARS);
  if (bytes.subarray(bytes.length - DIGEST_CHARS).toString() !== digestOf(head)) return undefined;
  const line = head.subarray(MAGIC.length, head.indexOf(10, MAGIC.length)).toString();
  return JSON.parse(line) as { jobId: string; attempt: number; hostname: string }; // the digest says that it is ours
}

function digestOf(head: Buffer): string {
  return createHash('sha256').update(head).digest('hex');
}
