"""Memory Maze stepped straight through MuJoCo: the bits of the published environment, several times as fast.

The published task still builds the maze, places the agent, and decides about targets and rewards. What is left out is
composer's loop around each of the 50 physics substeps, the observations nobody reads, a camera object per frame,
drawing walls outside the field of view, and loading the nine out of ten wall textures that a maze does not show.
"""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from wm_gym.envs.memory_maze.published import (
    ACTION_CONTROLS,
    BODY,
    CAMERA,
    EPISODE_LENGTHS,
    FRAME_SIZE,
    MazeStep,
    draw_border,
    load_libraries,
    make_published,
    without_velocity_warning,
)

# Metres between the centres of agent and target beyond which they cannot touch within one control step: 0.8 m apart
# they do, and at under 2 m/s the agent covers less than 0.5 m in a quarter of a second.
SAFE_DISTANCE = 2.0

# Visibility group of geoms that cannot be seen from here; groups 3 to 5 are not drawn by default, and 5 is empty here.
HIDDEN_GROUP = 5


class Renderer:
    """The OpenGL context of one maze, or of several that are drawn in one thread.

    It is that of the first maze: a new one would compile all shaders again, which takes as long as the upload.
    """

    def __init__(self) -> None:
        self.gl: Any = None

    def keep(self, gl: Any) -> None:
        """Takes a context over, so that it outlives the physics for which it was made."""
        self.gl = gl
        gl.increment_refcount()

    def close(self) -> None:
        """Frees the context once the physics of all its mazes are freed. May be called twice."""
        if self.gl is not None:
            self.gl.decrement_refcount()
            self.gl.free()
            self.gl = None


class DirectMaze:
    """Backend that owns task and physics and does by itself what `composer.Environment` does, in the same order.

    Args:
        size: "9x9", ...
        renderer: that of several mazes, which then has to be closed after them; None for one of its own.
        episode_length: in steps; None as published.
        picture_size: pixels along a side of the largest picture that is drawn.
    """

    def __init__(
        self,
        size: str,
        renderer: Renderer | None = None,
        episode_length: int | None = None,
        picture_size: int = FRAME_SIZE,
    ) -> None:
        self._size = size
        self._picture_size = picture_size
        self._episode_length = episode_length or EPISODE_LENGTHS[size]
        self._libraries = load_libraries()
        self._task: Any = None
        self._physics: Any = None
        self._camera: Any = None
        self._owns_renderer = renderer is None
        self._renderer = renderer or Renderer()

    @property
    def task(self) -> Any:
        """The task of `memory_maze`, which knows the maze and its targets."""
        return self._task

    @property
    def physics(self) -> Any:
        """The physics of MuJoCo."""
        return self._physics

    def reset(self, maze_seed: int) -> npt.NDArray[np.uint8]:
        """Builds maze `maze_seed` and returns its first frame, uint8 [64, 64, 3]."""
        if self._task is None:
            published = make_published(self._size, maze_seed)
            self._task = published.task
            published.close()
        self._free_physics()
        self._rng = np.random.RandomState(maze_seed)
        self._rebuild_maze()
        self._physics = self._compile_physics()
        self._start_episode()
        self._num_steps = 0
        return self._render()

    def step(self, action: int) -> MazeStep:
        """Applies one action for one control step, and draws what is then seen."""
        reward, last = self.advance(action)
        return MazeStep(self._render(), reward, last)

    def advance(self, action: int) -> tuple[float, bool]:
        """`step` without the frame: reward, and whether the episode has ended. To be followed by `draw`."""
        self._data.ctrl[:] = ACTION_CONTROLS[action]
        with self._physics.check_invalid_state():
            if self._may_touch_target():
                self._substeps_watching_targets()
            else:
                self._substeps_at_once()
        self._task.after_step(self._physics, self._rng)
        if self._physics.is_dirty:
            # A touched target was changed. The published observables recompute here too, which moves the solver's warm
            # start, so leaving it out would change the next step's last bits.
            self._physics.forward()
        self._num_steps += 1
        return float(self._task.get_reward(self._physics)), self._num_steps == self._episode_length

    def draw(self) -> Any:
        """Tells the GPU to draw the frame, and waits for nothing. Returns the `mujoco.MjrContext` that will have it."""
        mujoco, context = self._libraries.mujoco, self._physics.contexts.mujoco.ptr
        self._planes.hide_those_out_of_view()
        self._camera.update()
        with self._renderer.gl.make_current() as gl:
            gl.call(mujoco.mjr_setBuffer, mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
            gl.call(mujoco.mjr_render, self._rectangle, self._camera.scene.ptr, context)
        return context

    def finish(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The frame, uint8 [64, 64, 3], made of what `draw` left: the same shape, the lowest row first."""
        frame = pixels[::-1].copy()
        draw_border(frame, self._task._target_colors[self._task._current_target_ix])
        return frame

    def close(self) -> None:
        """Frees the physics, and the renderer if it is its own; `reset` makes new ones."""
        self._free_physics()
        if self._owns_renderer:
            self._renderer.close()

    def _free_physics(self) -> None:
        if self._physics is not None:
            self._camera = None
            self._physics.free()
            self._physics = None

    def _rebuild_maze(self) -> None:
        """Gives the task the maze and the random draws that a fresh published environment has for this seed."""
        arena = self._task.root_entity
        maze = arena.maze
        arena._maze = self._libraries.tasks.TextMazeVaryingWalls(
            height=maze.height,
            width=maze.width,
            max_rooms=maze.max_rooms,
            room_min_size=maze.room_min_size,
            room_max_size=maze.room_max_size,
            max_variations=maze.max_variations,
            spawns_per_room=maze.spawns_per_room,
            objects_per_room=maze.objects_per_room,
            simplify=True,
            random_seed=self._rng.randint(2147483648),
        )
        entities = list(arena.iter_entities())
        for target in self._task._targets:
            target.initialize_episode_mjcf(self._rng)
        self._task.initialize_episode_mjcf(self._rng)
        for entity in entities:
            entity.initialize_episode_mjcf(self._rng)

    def _compile_physics(self) -> Any:
        """Compiles the maze into `mjcf.Physics` with only those textures and buffers that are drawn with."""
        mjcf_model = self._task.root_entity.mjcf_model
        root = ElementTree.fromstring(mjcf_model.to_xml_string())
        shown = {material.get("texture") for material in root.iter("material")}
        asset = root.find("asset")
        assert asset is not None
        for texture in asset.findall("texture"):
            if texture.get("type") != "skybox" and texture.get("name") not in shown:
                asset.remove(texture)
        _draw_only(root, self._picture_size)
        files = {texture.get("file") for texture in root.iter("texture")}
        assets = {name: content for name, content in mjcf_model.get_assets().items() if name in files}
        return self._libraries.mjcf.Physics.from_xml_string(ElementTree.tostring(root, encoding="unicode"), assets)

    def _start_episode(self) -> None:
        physics, task = self._physics, self._task
        entities = list(task.root_entity.iter_entities())
        for entity in (task, *entities):
            entity.after_compile(physics, self._rng)
        with without_velocity_warning(), physics.reset_context():
            for entity in (task, *entities):
                entity.initialize_episode(physics, self._rng)
        self._model, self._data = physics.model.ptr, physics.data.ptr
        self._num_substeps = task.physics_steps_per_control_step
        self._targets = {int(physics.bind(target.geom).element_id): target for target in task._targets}
        self._target_positions = self._data.geom_xpos[list(self._targets), :2].copy()
        self._body = physics.model.name2id(BODY, "body")
        self._make_renderer()
        self._camera = self._libraries.engine.Camera(physics, FRAME_SIZE, FRAME_SIZE, CAMERA)
        self._rectangle = self._libraries.mujoco.MjrRect(0, 0, FRAME_SIZE, FRAME_SIZE)
        self._planes = ViewedPlanes(self._model, self._data, physics.model.name2id(CAMERA, "camera"))

    def _make_renderer(self) -> None:
        """Gives the maze's textures and shapes to the OpenGL context of the mazes before, if there is one."""
        if self._renderer.gl is None:
            self._renderer.keep(self._physics.contexts.gl)
        else:
            uploaded = self._libraries.wrapper.MjrContext(self._physics.model, self._renderer.gl)
            self._physics._contexts = self._libraries.engine.Contexts(gl=self._renderer.gl, mujoco=uploaded)

    def _may_touch_target(self) -> bool:
        offsets = self._target_positions - self._data.xpos[self._body, :2]
        return bool((np.square(offsets).sum(1) < SAFE_DISTANCE**2).any())

    def _substeps_at_once(self) -> None:
        mujoco = self._libraries.mujoco
        mujoco.mj_step2(self._model, self._data)
        mujoco.mj_step(self._model, self._data, self._num_substeps - 1)
        mujoco.mj_step1(self._model, self._data)

    def _substeps_watching_targets(self) -> None:
        mujoco = self._libraries.mujoco
        for _ in range(self._num_substeps):
            mujoco.mj_step2(self._model, self._data)
            mujoco.mj_step1(self._model, self._data)
            touching = set(self._data.contact.geom.flat)
            for geom, target in self._targets.items():
                if geom in touching and not target.activated:
                    target.after_substep(self._physics, self._rng)

    def _render(self) -> npt.NDArray[np.uint8]:
        self._planes.hide_those_out_of_view()
        frame = self._camera.render().copy()
        draw_border(frame, self._task._target_colors[self._task._current_target_ix])
        return frame


def _draw_only(root: ElementTree.Element, picture_size: int) -> None:
    """Gives a maze's OpenGL context room for one picture, and none for shadows: no light of the maze casts any.

    MuJoCo would keep 640 x 480 pixels, which it clears for every frame, and 64 MB for shadows.
    """
    visual = root.find("visual")
    assert visual is not None
    ElementTree.SubElement(visual, "global", offwidth=str(picture_size), offheight=str(picture_size))
    ElementTree.SubElement(visual, "quality", shadowsize="0")


class ViewedPlanes:
    """The textured rectangles of floor and walls, of which only those that reach into the camera's view are drawn.

    A rectangle is left out when its four corners lie beyond the same side of the view, so that no pixel can change.
    """

    def __init__(self, model: Any, data: Any, camera: int) -> None:
        plane = 0  # mjGEOM_PLANE
        self._geoms = np.flatnonzero((model.geom_type == plane) & (model.geom_bodyid == 0) & (model.geom_matid >= 0))
        self._model = model
        half_sizes = model.geom_size[self._geoms, None, :2]
        signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        axes = data.geom_xmat[self._geoms].reshape(-1, 3, 3)[:, :, :2]
        offsets = np.einsum("gik,gck->gci", axes, signs * half_sizes)
        self._corners = (data.geom_xpos[self._geoms, None] + offsets).reshape(-1, 3)
        self._position, self._axes = data.cam_xpos[camera], data.cam_xmat[camera]
        # A square picture; a margin of 2% keeps rounding on the safe side.
        self._slope = 1.02 * np.tan(np.radians(model.cam_fovy[camera]) / 2)

    def hide_those_out_of_view(self) -> None:
        """Sorts the rectangles into drawn and hidden, for where the camera is now."""
        x, y, z = ((self._corners - self._position) @ self._axes.reshape(3, 3)).T
        reach = -self._slope * z
        beyond = np.stack([x > reach, -x > reach, y > reach, -y > reach, z > 0]).reshape(5, -1, 4)
        self._model.geom_group[self._geoms] = np.where(beyond.all(2).any(0), HIDDEN_GROUP, 0)
