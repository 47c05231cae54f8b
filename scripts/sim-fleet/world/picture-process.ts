import { contentOf, truncateTo, writeAt } from './disk.ts';
import { here } from './fs.ts';
import { soon } from './fs-promises.ts';
import { sizeOf } from './picture.ts';

/** Decoding a small picture. Long enough for a crash to come in between. */
const CHECK_MS = 8;

/** In the place of agent/job/picture-process.ts: it reads what is in the file now, and writes a preview nobody has synced. */
export class PictureProcess {
  expect(): Disposable {
    return { [Symbol.dispose]: () => undefined };
  }

  async check(
    path: string,
    { previewPath }: { previewPath: string; maxPixels: number },
  ): Promise<{ width: number; height: number; format: string }> {
    const { disk } = here();
    return await soon(CHECK_MS, () => {
      const size = sizeOf(contentOf(disk.file(path, 'open')));
      if (size === undefined) throw new Error('it ends too early');
      disk.refuseIfFull('write', previewPath);
      const preview = disk.create(previewPath, 'open');
      truncateTo(preview, 0);
      writeAt(preview, Buffer.from(`preview of ${path}`), 0);
      return { ...size, format: 'png' };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // There is no process to end.
  }
}
